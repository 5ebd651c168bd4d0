"""Meshes of ranks, and the arithmetic that crosses them."""
