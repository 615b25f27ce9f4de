"""What the network eats: uint8 NHWC batches from the built-in images or from image folders."""
