"""Typed settings, their rules, and what follows from them without torch: model families, run directories."""
