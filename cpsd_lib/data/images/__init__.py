"""Image files -> uint8 pixels of one size: decoding, the memory-mapped cache, decoding anew, content digests."""
