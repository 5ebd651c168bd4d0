"""Bytes of fake tensors on the pretended device: storages as they are made, resized and freed."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor


class DeviceMemory:
    """What is allocated now, and the most at once in each phase.

    phase: names the phase that an allocation belongs to.
    """

    def __init__(self, phase: Callable[[], str]):
        self._phase = phase
        self._sizes: dict[int, int] = {}  # by storage
        self.now = 0
        self.peaks: dict[str, int] = {}
        self._recent = 0

    def see(self, tensor: Tensor) -> None:
        """Count the tensor's storage until it is freed, if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._add(self._sizes[key])
            weakref.finalize(storage, self._gone, key)

    def resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count a known storage at its new size."""
        key = storage._cdata
        if key in self._sizes:
            self._add(size - self._sizes[key])
            self._sizes[key] = size

    def begin(self) -> int:
        """Forget all peaks. Returns the bytes that are there already."""
        self.peaks = {}
        self._recent = self.now
        return self.now

    def begin_recent(self) -> None:
        """What torch.cuda.reset_peak_memory_stats asks."""
        self._recent = self.now

    @property
    def recent_peak(self) -> int:
        """What torch.cuda.max_memory_allocated tells: the most since `begin_recent`."""
        return self._recent

    def _add(self, size: int) -> None:
        self.now += size
        self._recent = max(self._recent, self.now)
        phase = self._phase()
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
