"""Supervised training on worked examples before PPO, with saves, evaluation and a log of its own."""
