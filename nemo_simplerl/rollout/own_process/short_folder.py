"""A temporary folder whose path leaves room for the names of the sockets that an engine makes in it."""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_SOCKET_BYTES = 107  # of a socket's path on Linux (sun_path without its end)
_RANDOM = 8  # characters that tempfile appends
_OTHERS = ("/tmp", "/var/tmp", "/dev/shm")


def make_short_folder(prefix: str, below: int, owner: str) -> Path:
    """Make a folder of its own below the temporary one, or below the first of some others that will do.

    below: bytes that the longest path of a socket has behind the folder's. owner: of the sockets, in messages.
    Raises OSError where no folder has a path that is short enough.
    """
    parent = short_folder(tempfile.gettempdir(), _OTHERS, room=room_for(prefix, below), owner=owner)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def room_for(prefix: str, below: int) -> int:
    """Bytes that the path of the parent of such a folder may have."""
    return _SOCKET_BYTES - below - len(f"/{prefix}") - _RANDOM


def short_folder(preferred: str, others: Sequence[str], *, room: int, owner: str) -> str:
    """`preferred`, or where its path has more than `room` bytes, the first of `others` that will do, with a warning.

    Raises OSError where none will.
    """
    size = len(os.fsencode(preferred))
    if size <= room:
        return preferred
    too_long = f"the temporary folder {preferred} has a path of {size} bytes, and {owner}'s sockets take {room}"
    for other in others:
        if len(os.fsencode(other)) <= room and os.access(other, os.W_OK | os.X_OK):
            log.warning(f"{too_long}: {owner} gets a folder in {other} instead")
            return other
    raise OSError(f"{too_long}; {', '.join(others)} cannot be written. Set TMPDIR to a folder with a short path.")
