"""Optimizer state in host memory while nobody steps, and no memory at all for gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemo_simplerl.trainer.learners.host_memory import host_places
from nemo_simplerl.trainer.learners.optimizer_parts import inner_optimizers, moments_of, stepped_parts


class Offload:
    """Keeps what only updates need away from the device but `while_updating`.

    Adam's moments and the float32 masters of bfloat16 weights move to host memory, page-locked where they come from a
    GPU; gradient buffers let go of their memory. All of them stay the same tensor objects, so that whoever saves or
    restores them finds them where they always are.
    """

    def __init__(self, model: DistributedDataParallel, optimizer: Any, device: torch.device):
        self._optimizer, self._device = optimizer, device
        self._gradients = [buffer.grad_data for buffer in (*model.buffers, *model.expert_parallel_buffers)]
        self._sizes = [gradients.untyped_storage().nbytes() for gradients in self._gradients]
        self._on_host: list[tuple[Tensor, Tensor]] = []  # each tensor that came to the device, and where it had been
        self._leave()

    @contextmanager
    def while_updating(self) -> Iterator[None]:
        self._arrive()
        try:
            yield
        finally:
            self._leave()

    @torch.no_grad()
    def _arrive(self) -> None:
        for gradients, size in zip(self._gradients, self._sizes, strict=True):
            gradients.untyped_storage().resize_(size)  # an update begins by setting them to 0
        self._on_host = [(tensor, tensor.data) for tensor in self._state()]
        for tensor, host in self._on_host:
            tensor.data = torch.empty_like(host, device=self._device).copy_(host, non_blocking=True)

    @torch.no_grad()
    def _leave(self) -> None:
        self._optimizer.zero_grad()  # Adam's own gradients are views of the buffers
        for gradients in self._gradients:
            gradients.untyped_storage().resize_(0)
        tensors = list(self._state())
        places = self._places(tensors)
        for tensor, place in zip(tensors, places, strict=True):
            place.copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for tensor, place in zip(tensors, places, strict=True):
            tensor.data = place
        self._on_host = []

    def _places(self, tensors: list[Tensor]) -> list[Tensor]:
        """Where each had been, for page-locking memory takes longer than filling it; new places for the others."""
        is_gpu = self._device.type == "cuda"
        had_been = {id(tensor): host for tensor, host in self._on_host if not is_gpu or host.is_pinned()}
        fresh = iter(host_places([tensor for tensor in tensors if id(tensor) not in had_been]))
        return [had_been[id(tensor)] if id(tensor) in had_been else next(fresh) for tensor in tensors]

    def _state(self) -> Iterator[Tensor]:
        for inner in inner_optimizers(self._optimizer):
            for param, stepped, _ in stepped_parts(inner):
                if stepped.dtype != param.dtype:
                    yield stepped
                yield from moments_of(inner.optimizer, stepped).values()
