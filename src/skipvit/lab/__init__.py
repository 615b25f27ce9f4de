"""Plans of many runs, and what they showed."""
