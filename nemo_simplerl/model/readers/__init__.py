"""Readers of models on disk, one module a form: each gives a Source of full tensors under canonical Megatron names."""
