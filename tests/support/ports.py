"""Ports for the servers that tests start."""

import random
import socket

_FIRST, _LAST = 15_000, 32_000  # below those that the kernel gives to outgoing connections


def free_port() -> int:
    """A port that no process listens on, out of the range from which the kernel takes ports for connections."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.SystemRandom().randrange(_FIRST, _LAST)))
            except OSError:
                continue
            return probe.getsockname()[1]
