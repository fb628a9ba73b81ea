"""Image files -> uint8 pixels of one size: decoding, the cache, decoding anew, content digests."""
