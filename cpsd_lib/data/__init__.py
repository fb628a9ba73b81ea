"""Images and a clean label table: readers of data sets, decoding, and the uint8 cache the training loop reads from."""
