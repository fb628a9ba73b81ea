"""Training views made on the batch, each a function of (seed, epoch, image)."""
