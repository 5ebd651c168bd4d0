"""Full tensors under Hugging Face names into a rank's shard, and out of it again."""
