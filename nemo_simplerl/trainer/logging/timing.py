"""Wall-clock seconds and peak device memory of a step's phases."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy

import psutil
import torch

from nemo_simplerl.parallel.waits import waiting


class PhaseTimer:
    """Adds up seconds by phase: `with timer("rollout"): ...`.

    Waits for the GPU at both ends of a phase, so that work queued in one phase does not count in the next. A phase
    inside another counts in both. Each phase is also a name in parallel.waits.
    on_enter: called with the name of each phase as it begins. take_peaks: returns the most bytes since its last call
    that tensors took on the device, and that torch's allocator held for them.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        on_enter: Callable[[str], None] | None = None,
        take_peaks: Callable[[], tuple[int, int]] | None = None,
    ):
        self._clock, self._on_enter = clock, on_enter
        self._take_peaks = take_peaks or (_take_device_peaks if torch.cuda.is_available() else None)
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, tuple[int, int]] = {}
        self._open: list[str] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with waiting(phase):
            if self._on_enter is not None:
                self._on_enter(phase)
            _wait_for_device()
            self._record_peak()
            self._open.append(phase)
            start = self._clock()
            try:
                yield
            finally:
                _wait_for_device()
                self._record_peak()
                self._open.pop()
                self._seconds[phase] = self._seconds.get(phase, 0.0) + self._clock() - start

    def with_on_enter(self, on_enter: Callable[[str], None]) -> "PhaseTimer":
        """A timer that adds to the same seconds and peaks, and calls another `on_enter`."""
        other = copy(self)
        other._on_enter = on_enter
        return other

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds since the last drain, by phase."""
        return dict(self._seconds)

    def drain(self) -> dict[str, float]:
        """Return `{"time/rollout": seconds, ..., "memory/rollout_gb": GiB, ...}` since the last drain and start anew.

        Phases are in order of first use. Memory is measured on GPUs alone; `memory/rollout_reserved_gb` counts what the
        allocator held too, which is what decides whether the phase fits.
        """
        drained = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        for phase, (allocated, reserved) in self._peaks.items():
            drained[f"memory/{phase}_gb"] = allocated / 2**30
            drained[f"memory/{phase}_reserved_gb"] = reserved / 2**30
        self._seconds.clear()
        self._peaks.clear()
        return drained

    def _record_peak(self) -> None:
        """Count the peaks since the last call in every open phase."""
        if self._take_peaks is not None:
            allocated, reserved = self._take_peaks()
            for phase in self._open:
                before = self._peaks.get(phase, (0, 0))
                self._peaks[phase] = max(allocated, before[0]), max(reserved, before[1])


def timed(phase: str) -> Callable:
    """Decorate a method so that its time counts in `phase` of its object's `timer`."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def timed_method(self, *args, **kwargs):
            with self.timer(phase):
                return method(self, *args, **kwargs)

        return timed_method

    return decorate


def host_gb() -> float:
    """GiB of host memory that this process holds now (resident set size)."""
    return psutil.Process().memory_info().rss / 2**30


def _take_device_peaks() -> tuple[int, int]:
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return peaks


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
