"""Grading in worker processes that can be killed, in the trainer's process or behind a server."""
