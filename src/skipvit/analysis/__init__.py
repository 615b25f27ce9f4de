"""What a network costs and which tokens it keeps."""
