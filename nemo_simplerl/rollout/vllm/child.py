"""The program of the engine's process: it answers the trainer's calls with vLLM until the pipe from the trainer ends.

Runs in vLLM's environment. Of this package it imports what needs torch and xxhash alone.
"""

import contextlib
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from nemo_simplerl.rollout.vllm.wire import Channel

_BEAT_S = 1.0  # seconds between two signs of life
_GRACE_S = 3.0  # seconds to finish what runs when the trainer has ended


class Served(Protocol):
    """What answers the calls: each public method is one."""

    def close(self) -> None: ...


def serve(channel: Channel, make: Callable[[Callable[[], None]], Served], folder: Path) -> None:
    """Answer calls by the methods of `make(sign_of_life)` until the trainer's end of the pipe closes, then end.

    An error is answered as text; the trainer then closes the pipe. folder: is deleted when the trainer has gone.
    """
    calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, calls, folder), daemon=True).start()
    said = time.monotonic()

    def sign_of_life() -> None:
        nonlocal said
        if time.monotonic() > said + _BEAT_S:
            said = time.monotonic()
            channel.send(("alive", None))

    served = make(sign_of_life)
    try:
        while (call := calls.get()) is not None:
            method, args = call
            try:
                answer = ("ok", getattr(served, method)(*args))
            except EOFError:  # the trainer has gone in the middle of a call
                break
            except Exception as error:
                traceback.print_exc()
                answer = ("error", f"{type(error).__name__}: {error}")
            channel.send(answer)
        served.close()
    except BaseException:
        traceback.print_exc()
        _leave(1)
    _leave(0, folder)


def _listen(channel: Channel, calls: "queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None]", folder: Path) -> None:
    """Pass on what the trainer asks. When it has gone, end this process and all that it started."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            calls.put(channel.receive())
    calls.put(None)
    time.sleep(_GRACE_S)  # the main thread leaves by itself, if it is not in the middle of something
    _leave(0, folder)


def _leave(status: int, folder: Path | None = None) -> None:
    """End vLLM's workers and this process. Helpers that clean up shared memory see it and do so."""
    for process in multiprocessing.active_children():
        process.kill()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM):  # a launcher may tell every process; the trainer decides
        signal.signal(ignored, signal.SIG_IGN)
    reads, writes, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    from nemo_simplerl.rollout.vllm.server import Server

    serve(Channel(reads, writes), Server, folder)


if __name__ == "__main__":
    main()
