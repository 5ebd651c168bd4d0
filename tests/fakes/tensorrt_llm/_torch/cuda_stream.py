"""The double's own: a worker's CUDA stream, whose work is done when somebody waits for it or later work needs it.

Copies of a refit are queued here, as on a GPU. So a sender that reuses the memory before the worker has waited for its
stream changes what is copied, on every run.
"""

from collections.abc import Callable

import torch

_queued: list[Callable[[], None]] = []


def queue(work: Callable[[], None]) -> None:
    _queued.append(work)


def synchronize(device=None) -> None:
    while _queued:
        _queued.pop(0)()


def stand_in_for_cuda() -> None:
    """Let torch.cuda.synchronize of this process wait for the stream."""
    torch.cuda.synchronize = synchronize
