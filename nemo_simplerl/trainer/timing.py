"""Wall-clock seconds of a step's phases."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from nemo_simplerl.parallel.waits import waiting


class PhaseTimer:
    """Adds up seconds by phase: `with timer("rollout"): ...`.

    A GPU is waited for at both ends of a phase, so that work queued in one is not billed to the next.
    A phase inside another counts in both. `on_enter` is told the name of each as it begins. Each is a name of
    parallel.waits too.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, on_enter: Callable[[str], None] | None = None):
        self._clock, self._on_enter = clock, on_enter
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with waiting(phase):
            if self._on_enter is not None:
                self._on_enter(phase)
            _wait_for_device()
            start = self._clock()
            try:
                yield
            finally:
                _wait_for_device()
                self._seconds[phase] = self._seconds.get(phase, 0.0) + self._clock() - start

    def drain(self) -> dict[str, float]:
        """`{"time/rollout": seconds, ...}` since the last drain, in order of first use; then starts anew."""
        drained = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        self._seconds = {}
        return drained


def timed(phase: str) -> Callable:
    """Bill a method to `phase` of its object's `timer`."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def timed_method(self, *args, **kwargs):
            with self.timer(phase):
                return method(self, *args, **kwargs)

        return timed_method

    return decorate


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
