"""A run as typed, checked data."""
