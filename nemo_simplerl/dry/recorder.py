"""What runs on the pretended device: memory, matrix FLOPs, launches and collectives, and the values that code asks for.

Fake tensors have sizes and no values, but code reads lengths, masks and flags. So the value of every small tensor that
can be known is computed on the CPU beside the fake one; what is asked of an unknown one (a loss, a norm) is guessed.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.flop_counter import flop_registry

from nemo_simplerl.dry.collectives import Collective
from nemo_simplerl.dry.memory import DeviceMemory

LAUNCH = "simplerl_dry::launch"  # how code that only allocates tells of the kernels that would run
_LIBRARY = torch.library.Library("simplerl_dry", "DEF")
_LIBRARY.define("launch(Tensor[] reads, int kernels, int attention_flops) -> ()")
_KNOWN_ELEMENTS = 1 << 24
_SIZED_BY_VALUES = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"}
_UNWRITTEN = {"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::new_empty_strided"}
_PASSED_THROUGH = ("/torch/", "/nemo_simplerl/dry/", "/contextlib.py", "/typing_extensions.py")  # on the way to a call
_RANDOM = {"aten::rand", "aten::randn", "aten::rand_like", "aten::randn_like"}


@dataclass
class Counts:
    """What was counted in one phase."""

    flops: int = 0  # of matrix products
    attention_flops: int = 0
    launches: int = 0  # operators that start a kernel, each counted once
    guessed: int = 0  # values that were asked of a fake tensor and not known


class FakeCuda(FakeTensorMode):
    """FakeTensorMode that never starts CUDA for a tensor on it."""

    avoid_device_init = True


class Recorder(TorchDispatchMode):
    """To be entered above a FakeCuda. phase: names the phase that the program is in."""

    def __init__(self, phase: Callable[[], str]):
        super().__init__()
        self.phase = phase
        self.memory = DeviceMemory(phase)
        self.counts: dict[str, Counts] = defaultdict(Counts)
        self.collectives: list[Collective] = []
        self._is_in_kernel = False

    def as_one_kernel(self, work: Callable) -> Callable:
        """`work` as a compiler makes it: one launch, of which memory sees the results alone."""

        def launched(*args, **kwargs):
            self._is_in_kernel = True
            try:
                results = work(*args, **kwargs)
            finally:
                self._is_in_kernel = False
            for result in tree_leaves(results):
                if isinstance(result, Tensor):
                    self.memory.see(result)
            self.counts[self.phase()].launches += 1
            return results

        return launched

    def begin(self) -> int:
        """Start counting anew. Returns the bytes that are on the device already."""
        self.counts, self.collectives = defaultdict(Counts), []
        return self.memory.begin()

    def forget_all_but(self, phase: str) -> None:
        """Drop what was counted in other phases so far."""
        self.memory.peaks = {name: peak for name, peak in self.memory.peaks.items() if name == phase}
        self.counts = defaultdict(Counts, {name: counts for name, counts in self.counts.items() if name == phase})
        self.collectives = [call for call in self.collectives if call.phase == phase]

    def collective(self, operation: str, ranks: Sequence[int], tensors: Sequence[Tensor] = ()) -> None:
        """Note a call; of no tensors, one that exchanges Python objects."""
        largest = max(tensors, key=lambda tensor: tensor.nbytes, default=None)
        described: tuple[str, int, int, str] = ("object", 0, 0, "cpu")
        if largest is not None:
            described = (str(largest.dtype)[6:], largest.numel(), largest.nbytes, largest.device.type)
        self.collectives.append(Collective(self.phase(), operation, tuple(ranks), *described, _caller()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name == LAUNCH:
            return self._launch(*args)
        if name == "aten::_local_scalar_dense":
            return self._scalar(args[0])
        if name == "aten::is_pinned":
            return False
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name.startswith("c10d::"):
            self._note_operation(name, args, tensors)
            return func(*args, **kwargs)
        if name in _SIZED_BY_VALUES:
            known = self._computed(func, args, kwargs)
            return tree_map_only(Tensor, lambda value: self._with_value(value, args[0].device), known)
        if name == "aten::index":
            args = (args[0], [place for index in args[1] for place in self._as_places(index)])
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        self._keep_values(func, name, args, kwargs, tensors, outs)
        self._count(func, name, args, kwargs, out, outs)
        return out

    def _launch(self, reads: Sequence[Tensor], kernels: int, flops: int) -> None:
        where = {tensor.device.type for tensor in reads}
        assert where <= {"cuda"}, f"a kernel for the GPU is given tensors on {sorted(where)}"
        counts = self.counts[self.phase()]
        counts.launches += kernels
        counts.attention_flops += flops

    def _scalar(self, tensor: Tensor) -> Any:
        value = known_value(tensor)
        if value is not None:
            with _disable_current_modes():
                return value.item()
        self.counts[self.phase()].guessed += 1
        return False if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 0

    def _note_operation(self, name: str, args: tuple, tensors: Sequence[Tensor]) -> None:
        group = dist.ProcessGroup.unbox(next(arg for arg in args if isinstance(arg, torch.ScriptObject)))
        operation = name.removeprefix("c10d::").strip("_").replace("_base", "")
        self.collective(operation, dist.get_process_group_ranks(group), tensors)

    def _as_places(self, index: Tensor | None) -> list[Tensor | None]:
        """A mask as the places where it is true, one index a dimension: they say how large the result is."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        value = known_value(index)
        assert value is not None, "an index by a mask whose values are not known"
        with _disable_current_modes():
            places = value.nonzero(as_tuple=True)
        return [self._with_value(place, index.device) for place in places]

    def _with_value(self, value: Tensor, device: torch.device) -> Tensor:
        """A fake tensor on `device` of a known value."""
        fake = torch.empty(value.shape, dtype=value.dtype, device=device)
        fake._simplerl_value = value  # type: ignore[attr-defined]
        if fake.device.type == "cuda":
            self.memory.see(fake)
        return fake

    def _keep_values(self, func, name: str, args, kwargs, tensors: list[Tensor], outs: list[FakeTensor]) -> None:
        """Compute what the operator writes where all that it reads is known, and forget what is overwritten."""
        is_computed = name not in _UNWRITTEN | _RANDOM and sum(out.numel() for out in outs) <= _KNOWN_ELEMENTS
        is_known = is_computed and all(known_value(tensor) is not None for tensor in tensors)
        values = self._computed(func, args, kwargs) if is_known else None
        if values is not None:
            computed = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
            for out, value in zip(outs, computed, strict=False):
                if out.shape == value.shape:
                    out._simplerl_value = value  # type: ignore[attr-defined]
        elif func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, FakeTensor):
                    value.__dict__.pop("_simplerl_value", None)

    def _computed(self, func, args, kwargs) -> Any:
        """What the operator gives on the CPU for the known values; None where it cannot run there."""

        def on_host(leaf):
            if isinstance(leaf, Tensor):
                return known_value(leaf)
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        with _disable_current_modes():
            try:
                return func(*tree_map(on_host, args), **tree_map(on_host, kwargs))
            except NotImplementedError:
                return None

    def _count(self, func, name: str, args, kwargs, out, outs: list[FakeTensor]) -> None:
        on_device = [tensor for tensor in outs if tensor.device.type == "cuda"]
        if self._is_in_kernel:
            return
        for tensor in on_device:
            self.memory.see(tensor)
        counts = self.counts[self.phase()]
        if on_device and not func.is_view and name not in _UNWRITTEN:
            counts.launches += 1
        if (formula := flop_registry.get(func._overloadpacket)) is not None and on_device:
            operands = [arg for arg in args if not isinstance(arg, torch.dtype)]  # `out_dtype`: no formula takes it
            counts.flops += formula(*operands, **kwargs, out_val=out)


def known_value(tensor: Tensor) -> Tensor | None:
    """The value of a fake tensor where it is known, and any other tensor itself."""
    return tensor.__dict__.get("_simplerl_value") if isinstance(tensor, FakeTensor) else tensor


def _caller() -> str:
    """file:line of the innermost frame outside of torch and this package, or the double's function that stands in."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if "/dry/te/" in file:
            return f"Transformer Engine's {frame.f_code.co_name.strip('_')}"
        if not any(place in file for place in _PASSED_THROUGH):
            break
        frame = frame.f_back
    parts = frame.f_code.co_filename.split("/")
    return f"{'/'.join(parts[-3:])}:{frame.f_lineno}"
