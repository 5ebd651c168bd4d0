"""Engines behind one protocol: generation over ranks, refits, and the proof of what an engine holds."""
