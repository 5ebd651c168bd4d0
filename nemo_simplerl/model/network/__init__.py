"""GPTModel on this rank: built from a config, its layers, heads and value head, run in Megatron's schedules."""
