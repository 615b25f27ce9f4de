"""What all rooms share: errors, files, processes, tables."""
