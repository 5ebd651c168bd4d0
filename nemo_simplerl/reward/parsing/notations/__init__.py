"""Notations of their own kind: each module reads one of them, and none is needed for arithmetic."""
