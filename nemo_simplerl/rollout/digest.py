"""64-bit digests of tensors, by which a sender and an engine compare what they hold."""

from functools import cache

import torch
import xxhash
from torch import Tensor

# A block is hashed while the copy that made it is still in the cache: small enough for a share of it, large enough that
# Python's part of the work does not show.
_BLOCK_BYTES = 2**22
_DEVICE_WORDS = 2**22


@torch.no_grad()
def digest(tensor: Tensor) -> int:
    """64-bit hash of the tensor's bytes in order. Two are comparable where they were made on one kind of device.

    On the CPU XXH3 (two unlike tensors agree with odds of 2**-64); elsewhere `device_digest`.
    """
    if tensor.device.type != "cpu":
        return device_digest(tensor)
    hasher = xxhash.xxh3_64()
    hasher.update(_host_bytes(tensor))
    return hasher.intdigest()


@torch.no_grad()
def copy_and_digest(target: Tensor, source: Tensor) -> int:
    """Copy `source` into `target` of the same shape and dtype; returns the `digest` of what `target` then holds."""
    if target.device.type != "cpu" or not (target.is_contiguous() and source.is_contiguous()):
        target.copy_(source)
        return digest(target)
    hasher = xxhash.xxh3_64()
    step = _BLOCK_BYTES // target.element_size()
    for to, origin in zip(target.view(-1).split(step), source.view(-1).split(step), strict=True):
        to.copy_(origin)
        hasher.update(_host_bytes(to))
    return hasher.intdigest()


@torch.no_grad()
def device_digest(tensor: Tensor) -> int:
    """Digest computed on the tensor's own device: the sum of w_i x_i modulo 2**64 over its 32-bit words x_i.

    The weights are pseudo-random and odd, so one flipped bit always shows; another change, such as two words swapped,
    goes unseen with odds of about 2**-32.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.numel() % 4 or data.storage_offset() % 4:
        data = torch.nn.functional.pad(data, (0, -data.numel() % 4)).clone()
    weights = _word_weights(tensor.device)
    parts = [(words * weights[: len(words)]).sum() for words in data.view(torch.int32).split(_DEVICE_WORDS)]
    # Each part counts with a weight of its own, so that parts cannot change places; so does the length.
    parts.append(torch.full_like(weights[0], tensor.nbytes))
    return int((torch.stack(parts) * weights[: len(parts)]).sum())


@cache
def _word_weights(device: torch.device) -> Tensor:
    """Odd int64 [_DEVICE_WORDS], each a hash of its index: SplitMix64's finaliser, but with arithmetic shifts."""
    x = torch.arange(1, _DEVICE_WORDS + 1, device=device) * (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ (x >> 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ (x >> 27)) * (0x94D049BB133111EB - 2**64)
    return (x ^ (x >> 31)) | 1


def _host_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
