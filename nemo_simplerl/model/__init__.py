"""The Megatron-core model: built from a Hugging Face config, filled from its weights, run through Megatron's schedules."""
