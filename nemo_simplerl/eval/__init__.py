"""Accuracy on held-out prompts, and the recipe's eight benchmarks."""
