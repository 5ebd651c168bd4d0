"""The Megatron-core model: built from a Hugging Face config, filled from its weights, run in Megatron's schedules."""
