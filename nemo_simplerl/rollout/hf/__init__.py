"""The embedded engine: a transformers model with a decoding loop of our own."""
