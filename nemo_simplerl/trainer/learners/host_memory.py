"""Host memory that device tensors are copied into."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_ALIGNMENT = 64


class HostWeights:
    """A model's weights as they were when they were last kept, in host memory; at first those of its making."""

    def __init__(self, model: torch.nn.Module):
        self._params = list(model.parameters())
        self._kept = pinned_like(self._params)
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the weights that the model has now."""
        for kept, param in zip(self._kept, self._params, strict=True):
            kept.copy_(param)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the kept weights, and its own are kept for it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for param, kept in zip(self._params, self._kept, strict=True):
            current = param.clone()  # on the device, since page-locked memory alone copies at the bus's full speed
            param.copy_(kept, non_blocking=True)
            kept.copy_(current, non_blocking=True)


def pinned_like(tensors: Sequence[Tensor], block_bytes: int = 2**30) -> list[Tensor]:
    """For each tensor an uninitialised one of its shape and type in host memory; page-locked, so that copies are fast
    and asynchronous, where the tensor is on a GPU.

    Tensors share blocks of `block_bytes`; a larger one has a block of its own. torch rounds page-locked blocks up to a
    power of two, so that one block for each tensor would take up to twice as much.
    """
    copies = {
        on_gpu: _in_blocks([one for one in tensors if one.is_cuda == on_gpu], on_gpu, block_bytes)
        for on_gpu in (False, True)
    }
    return [next(copies[tensor.is_cuda]) for tensor in tensors]


def _in_blocks(tensors: Sequence[Tensor], page_locked: bool, block_bytes: int) -> Iterator[Tensor]:
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    left, room, block = sum(sizes), 0, torch.empty(0)
    for tensor, size in zip(tensors, sizes, strict=True):
        if size > room:
            room = max(size, min(left, block_bytes))
            block = torch.empty(room, dtype=torch.uint8, pin_memory=page_locked)
        start = block.numel() - room
        yield block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        room, left = room - size, left - size
