"""Optimizer state in host memory between a role's updates, and gradient buffers without memory meanwhile."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.guard.stop import Stopping
from nemo_simplerl.trainer.learners.host_memory import pinned_like
from nemo_simplerl.trainer.learners.optimizer_parts import inner_optimizers, moments_of, stepped_parts

log = logging.getLogger(__name__)

_LONG_S = 5.0  # a wait for a checkpoint that is worth a message


class Offload:
    """Keeps what only updates need off the device, except within `while_updating`.

    Adam's moments and the float32 masters of bfloat16 weights move to host memory, page-locked where they come from a
    GPU; gradient buffers give their memory back, and torch's allocator what it keeps of both: the next role's buffers
    are of other sizes, which the pieces kept do not fit. All of them stay the same tensor objects, so that code which
    saves or restores them needs to know nothing of this.

    A save may read the state where it waits (`lend`): updates work on copies on the device, and the host memory is
    written again only when they are done, after the save has read it.
    """

    def __init__(self, model: DistributedDataParallel, optimizer: Any, device: torch.device):
        self._optimizer, self._device = optimizer, device
        self._gradients = [buffer.grad_data for buffer in (*model.buffers, *model.expert_parallel_buffers)]
        self._sizes = [gradients.untyped_storage().nbytes() for gradients in self._gradients]
        self._on_host: list[tuple[Tensor, Tensor]] = []  # each tensor that is on the device, and its host memory
        self._reader: Future | None = None  # done when nobody reads the host memory any more
        self._to_host()

    @contextmanager
    def while_updating(self) -> Iterator[None]:
        """Use as a context around updates: the state is on the device inside, in host memory outside.

        An error that ends the run is not kept waiting for a save to be written: the state stays where it is.
        """
        self._to_device()
        try:
            yield
        except Stopping:  # between two updates: a save follows
            self._to_host()
            raise
        self._to_host()

    def storages(self) -> set[int]:
        """Addresses of the storages that hold the state now: host memory, outside of updates."""
        return {tensor.untyped_storage().data_ptr() for tensor in self._state()}

    def lend(self, reader: Future) -> None:
        """Let `reader` read the state in host memory until it is done: only then is that memory written again."""
        self._reader = reader

    @torch.no_grad()
    def _to_device(self) -> None:
        for gradients, size in zip(self._gradients, self._sizes, strict=True):
            gradients.untyped_storage().resize_(size)  # an update begins by setting them to 0
        self._on_host = [(tensor, tensor.data) for tensor in self._state()]
        for tensor, host in self._on_host:
            tensor.data = torch.empty_like(host, device=self._device).copy_(host, non_blocking=True)

    @torch.no_grad()
    def _to_host(self) -> None:
        self._optimizer.zero_grad()  # Adam's own gradients are views of the buffers
        for gradients in self._gradients:
            gradients.untyped_storage().resize_(0)
        tensors = list(self._state())
        self._wait_for_reader()
        buffers = self._host_buffers(tensors)
        for tensor, buffer in zip(tensors, buffers, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for tensor, buffer in zip(tensors, buffers, strict=True):
            tensor.data = buffer
        self._on_host = []
        torch.cuda.empty_cache()

    def _wait_for_reader(self) -> None:
        if self._reader is None:
            return
        began = time.monotonic()
        with waiting("checkpoint.writers"):
            wait([self._reader])
        self._reader = None
        if (waited := time.monotonic() - began) > _LONG_S:
            log.warning(
                f"an update waited {waited:.0f} s for the last checkpoint to be written, from the memory that its "
                "result is to go to. A faster disk, or a larger trainer.save_every, helps."
            )

    def _host_buffers(self, tensors: list[Tensor]) -> list[Tensor]:
        """The host memory each tensor had, since page-locking takes longer than filling; new memory for the others."""
        is_gpu = self._device.type == "cuda"
        known = {id(tensor): host for tensor, host in self._on_host if not is_gpu or host.is_pinned()}
        fresh = iter(pinned_like([tensor for tensor in tensors if id(tensor) not in known]))
        return [known[id(tensor)] if id(tensor) in known else next(fresh) for tensor in tensors]

    def _state(self) -> Iterator[Tensor]:
        for inner in inner_optimizers(self._optimizer):
            for param, stepped, _ in stepped_parts(inner):
                if stepped.dtype != param.dtype:
                    yield stepped
                yield from moments_of(inner.optimizer, stepped).values()
