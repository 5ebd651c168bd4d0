"""Full tensors on disk -> the shards of a rank, and shards -> full tensors under Hugging Face names."""
