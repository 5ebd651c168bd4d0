"""Tensors shared with another process of this machine by handle, not by value.

All that differs between CPU and CUDA on this path is here: CUDA memory travels as IPC handles, host memory (tests, and
engines that run on a CPU) as the name of a shared file.
"""

import base64
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing
from torch.multiprocessing.reductions import reduce_tensor

from nemo_simplerl.rollout.base import Bucket

_STORAGE_DEVICE = 6  # position of this argument of torch's rebuild_cuda_tensor
_ALIGNMENT = 512  # bytes; any dtype may start there, and copies from there run at full speed


def set_cuda_allocator(text: str) -> None:
    """Set the options of torch's CUDA allocator, in the form of PYTORCH_ALLOC_CONF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # renamed after torch 2.10, whose name this is
        torch.cuda.memory._set_allocator_settings(text)


class Staging:
    """One buffer that buckets are copied into in turn, and that other processes open by its handles.

    A copy, because the tensors may lie in memory that cannot be shared: expandable segments of the CUDA allocator, or
    ordinary host memory. It is overwritten by the next bucket: its readers must be done by then.
    """

    def __init__(self, device: torch.device, set_allocator: Callable[[str], None] = set_cuda_allocator):
        self._device, self._set_allocator = device, set_allocator
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._views: Bucket = []

    def put(self, bucket: Bucket) -> None:
        """Replace the content by the bucket's tensors. Copies are done when this returns."""
        starts, size = [], 0
        for _, tensor in bucket:
            starts.append(size)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if size > self._buffer.nbytes:
            self._views, self._buffer = [], torch.empty(0, dtype=torch.uint8)
            with _fixed_segments(self._set_allocator):
                self._buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._views = []
        for (name, tensor), start in zip(bucket, starts, strict=True):
            view = self._buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            self._views.append((name, view.copy_(tensor)))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # a reader's stream does not wait for ours

    def handles(self) -> str:
        """Base64 of pickled (name, reduce_tensor(tensor)) pairs, to be opened once by one reader."""
        with _shared_files(self._device):
            pairs = [(name, reduce_tensor(view)) for name, view in self._views]
            return base64.b64encode(bytes(ForkingPickler.dumps(pairs))).decode()


def open_handles(text: str, device_index: int) -> Bucket:
    """The tensors of `Staging.handles`, in the process that holds device `device_index`.

    Unpickles: `text` must come from the trainer that started this process.
    """
    bucket = []
    for name, (rebuild, args) in pickle.loads(base64.b64decode(text)):
        args = list(args)
        if len(args) > _STORAGE_DEVICE:  # rebuild_cuda_tensor's; it has the sender's number of the device
            args[_STORAGE_DEVICE] = device_index
        bucket.append((name, rebuild(*args)))
    return bucket


def device_uuid(device: torch.device, rank: int) -> str:
    """TensorRT-LLM's name of the device; without a GPU, a name made of the rank in the engine's group."""
    if device.type == "cuda":
        return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return f"CPU-{rank}"


def physical_index(device: torch.device) -> int | None:
    """The number of a GPU before CUDA_VISIBLE_DEVICES renumbers it; None for a CPU.

    Raises ValueError where the variable names devices otherwise than by number.
    """
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return index
    entry = visible.split(",")[index].strip()
    if not entry.isdigit():
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={visible!r} names a device by {entry!r}; TensorRT-LLM's Ray workers read numbers "
            "only (no UUIDs, no MIG). Set it to device numbers, such as 0,1."
        )
    return int(entry)


def return_cached_memory(device: torch.device) -> None:
    """Return the allocator's cached memory to the device, for the other process that shares it."""
    if device.type == "cuda":
        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()


@contextmanager
def _shared_files(device: torch.device) -> Iterator[None]:
    """Context that shares host memory as named files: unrelated processes can open a name, not a file descriptor."""
    if device.type == "cuda":
        yield
        return
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


@contextmanager
def _fixed_segments(set_allocator: Callable[[str], None]) -> Iterator[None]:
    """Context whose allocations can be shared: handles of expandable segments do not open in every container."""
    text = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    if "expandable_segments:True" not in text:
        yield
        return
    # The whole text again, because each call sets the other options back to their defaults.
    set_allocator(text.replace("expandable_segments:True", "expandable_segments:False"))
    try:
        yield
    finally:
        set_allocator(text)
