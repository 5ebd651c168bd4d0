"""Kernels and bytes of work on tensors of any device, `meta` too, and a double of a CUDA graph."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "detach", "lift_fresh"}
# These touch a tensor where another says, not all of it.
_SPARSE = {"gather", "scatter_", "index_select", "index_copy_"}
_FROM_HOST = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item"}


class KernelCount(TorchDispatchMode):
    """Counts the operations that would be kernels on a GPU, and the bytes that they read and write.

    An operation reads its arguments and writes its results once. Views and fresh memory cost nothing.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes, self.names = 0, 0, []
        self._is_inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._is_inside and is_kernel(func, args, kwargs, result):
            given = {key: value for key, value in kwargs.items() if key != "out"}
            self._add(str(func), _name(func) in _SPARSE, (args, given), result)
        return result

    def as_one(self, work: Callable) -> Callable:
        """`work` as one kernel, which reads its arguments and writes its results."""

        def counted(*args, **kwargs):
            was_inside, self._is_inside = self._is_inside, True
            try:
                result = work(*args, **kwargs)
            finally:
                self._is_inside = was_inside
            self._add(work.__name__, False, (args, kwargs), result)
            return result

        return counted

    def _add(self, name: str, is_sparse: bool, given, result) -> None:
        sizes = [_bytes(tensor) for tensor in (*_tensors(given), *_tensors(result))]
        self.kernels += 1
        self.bytes += 2 * min(sizes) * len(sizes) if is_sparse else sum(sizes)
        self.names.append(name)


class RecordedGraph(TorchDispatchMode):
    """Stands in for CUDA graphs: takes down the operations of a function with their tensors, and runs just
    those again on the same memory. What the host decided or counted meanwhile is not seen, as in a graph.

    Like a capture it refuses whatever brings a number to the host. `launches` counts kernels outside of graphs and
    graphs that were launched, once entered; `captured` the kernels of each graph.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.captured = 0, []
        self._taken: list | None = None
        self._is_replaying = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._taken is not None and _name(func) in _FROM_HOST:
            raise RuntimeError(f"{func} needs a number on the host, which a capture cannot give")
        result = func(*args, **kwargs)
        if is_kernel(func, args, kwargs, result):
            if self._taken is not None:
                self._taken.append((func, args, kwargs, result))
            elif not self._is_replaying:
                self.launches += 1
        return result

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See nemo_simplerl.rollout.hf.steps.Capture."""
        taken = self._taken = []
        try:
            with _Undone():
                work()
        finally:
            self._taken = None
        self.captured.append(len(taken))

        def replay() -> None:
            self.launches += 1
            self._is_replaying = True
            try:
                for func, args, kwargs, result in taken:
                    tree_map(_put, result, func(*args, **kwargs))
            finally:
                self._is_replaying = False

        return replay


class _Undone(TorchDispatchMode):
    """Puts back at its end what operations wrote over: a capture runs nothing."""

    def __init__(self):
        super().__init__()
        self._before, self._fresh = {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        if func._schema.is_mutable:
            storage = kwargs.get("out", args[0]).untyped_storage()
            if storage._cdata not in self._fresh and storage._cdata not in self._before:
                with _disable_current_modes():  # copying is no part of what is recorded
                    self._before[storage._cdata] = storage, storage.clone()
        result = func(*args, **kwargs)
        self._fresh |= {_memory(tensor) for tensor in _tensors(result)} - given
        return result

    def __exit__(self, *exception):
        super().__exit__(*exception)
        with _disable_current_modes():
            for storage, content in self._before.values():
                storage.copy_(content)


def is_kernel(func, args, kwargs, result) -> bool:
    if _name(func) in _NO_KERNEL:
        return False
    given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
    return func._schema.is_mutable or any(_memory(tensor) not in given for tensor in _tensors(result))


def _put(old, new) -> None:
    if isinstance(old, Tensor) and _memory(old) != _memory(new):
        old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _name(func) -> str:
    return func.overloadpacket.__name__


def _tensors(tree) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Of the elements that differ in memory: an expanded dimension counts once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(sizes).numel() * tensor.element_size()
