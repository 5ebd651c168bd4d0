"""The Megatron-core model: built from a Hugging Face config, filled from model files, run in Megatron's schedules."""
