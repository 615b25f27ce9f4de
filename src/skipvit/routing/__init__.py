"""Routes: which tokens bypass which blocks, and how."""
