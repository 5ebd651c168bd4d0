"""Ports for servers of tests."""

import random
import socket

_FIRST, _LAST = 15_000, 32_000  # below those that the kernel gives to outgoing connections


def free_port() -> int:
    """One that nobody listens on. Between the look and its use no connection of another test can take it."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.SystemRandom().randrange(_FIRST, _LAST)))
            except OSError:
                continue
            return probe.getsockname()[1]
