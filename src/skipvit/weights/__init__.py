"""Weights in, weights and graphs out."""
