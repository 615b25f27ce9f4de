"""What the network is: a Vision Transformer and the routes its tokens take."""
