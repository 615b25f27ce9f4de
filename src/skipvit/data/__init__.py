"""What the network eats: uint8 NHWC batches from the built-in pictures or from image folders."""
