"""A GPU and a world of ranks that are pretended: what torch and Megatron are told in place of asking them.

Patches the whole process, for good: it is the child's, never a trainer's.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from nemo_simplerl.dry.collectives import RECEIVE, SEND
from nemo_simplerl.dry.recorder import Recorder


class _Properties:
    name, total_memory, major, minor, multi_processor_count, uuid = "pretended H100", 80 * 2**30, 9, 0, 132, "0"


def pretend_gpu(recorder: Recorder) -> None:
    """Have torch tell of one H100 whose memory is the recorder's, and let fake tensors move as real ones do."""
    cuda, state = torch.cuda, torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "current_device": 0,
        "device_count": 1,
        "get_rng_state": state,
        "get_device_capability": (9, 0),
        "get_device_properties": _Properties,
        "get_device_name": _Properties.name,
        "is_bf16_supported": True,
    }
    nothing = ("set_device", "synchronize", "empty_cache", "ipc_collect", "manual_seed", "manual_seed_all")
    for name, answer in (answers | dict.fromkeys(nothing)).items():
        _replace(cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    cuda.random.get_rng_state = cuda.get_rng_state
    memory = recorder.memory
    cuda.memory_allocated = cuda.memory_reserved = lambda device=None: memory.now
    cuda.max_memory_allocated = cuda.max_memory_reserved = lambda device=None: memory.recent_peak
    cuda.reset_peak_memory_stats = lambda device=None: memory.begin_recent()
    _let_storages_resize(recorder)
    # An assignment to `data` takes the device of the new tensor along, and modules are moved by one: torch would swap
    # their fake parameters, which it cannot while gradient hooks hold them.
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    FakeTensor.data = property(torch.Tensor.data.__get__, _set_data)  # type: ignore[attr-defined]


def pretend_fused_kernels(recorder: Recorder) -> None:
    """Have the functions that Megatron and the head compile allocate what their one kernel writes and no more.

    The machine is assumed to have a C compiler, as the plan assumes it has what the image has.
    """
    from megatron.core.fusions import fused_bias_swiglu
    from megatron.core.tensor_parallel import random

    from nemo_simplerl.model.network import head, provider

    _replace(provider, "why_not_compile", lambda: None)
    _replace(head, "_compiled", recorder.as_one_kernel)

    def swiglu(gate_and_up: Tensor) -> Tensor:
        torch.ops.simplerl_dry.launch([gate_and_up], 1, 0)
        return gate_and_up.new_empty(*gate_and_up.shape[:-1], gate_and_up.shape[-1] // 2)

    def swiglu_back(gradient: Tensor, gate_and_up: Tensor) -> Tensor:
        torch.ops.simplerl_dry.launch([gradient, gate_and_up], 1, 0)
        return torch.empty_like(gate_and_up)

    _replace(fused_bias_swiglu, "swiglu", swiglu)
    _replace(fused_bias_swiglu, "swiglu_back", swiglu_back)
    _replace(random, "_get_cuda_rng_state", lambda *args, **kwargs: torch.cuda.get_rng_state())
    _replace(random, "_set_cuda_rng_state", lambda *args, **kwargs: None)


class Peers:
    """What other ranks would say. Objects that a rank gathers are its own, once for every rank.

    Those that one rank broadcasts are remembered for the ranks that are run after it; so the last pipeline stage is run
    first.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._said: dict[tuple[int, ...], list[list]] = defaultdict(list)
        self._heard: dict[tuple[int, ...], int] = {}

    def begin_layout(self) -> None:
        self._said.clear()

    def begin_rank(self) -> None:
        self._heard = defaultdict(int)

    def install(self) -> None:
        """Have torch.distributed ask here."""
        from megatron.core.distributed import param_and_grad_buffer

        dist.all_gather_object = self._all_gather_object
        dist.broadcast_object_list = self._broadcast_object_list
        dist.batch_isend_irecv = self._batch_isend_irecv
        _replace(param_and_grad_buffer, "_coalescing_manager", _one_by_one)
        # Waiting for others changes nothing where there are none.
        dist.barrier = lambda *args, **kwargs: None

    def _all_gather_object(self, objects: list, mine: object, group: dist.ProcessGroup | None = None) -> None:
        self._recorder.collective("all_gather_object", dist.get_process_group_ranks(group))
        objects[:] = [mine] * len(objects)

    def _broadcast_object_list(self, objects: list, src: int | None = None, group=None, *args, **kwargs) -> None:
        ranks = tuple(dist.get_process_group_ranks(group))
        self._recorder.collective("broadcast_object_list", ranks)
        if dist.get_rank() == src:
            self._said[ranks].append(list(objects))
        else:
            objects[:] = self._said[ranks][self._heard[ranks]]
            self._heard[ranks] += 1

    def _batch_isend_irecv(self, operations: Sequence[dist.P2POp]) -> list:
        mine = dist.get_rank()
        for one in operations:
            is_send = one.op is dist.isend
            ranks = (mine, one.peer) if is_send else (one.peer, mine)
            self._recorder.collective(SEND if is_send else RECEIVE, ranks, [one.tensor])
        return []


def pretend_neighbours() -> None:
    """Have pipeline stages receive tensors of the shapes of this rank's micro-batches, which are their neighbours' too.

    Megatron asks the neighbour for each shape before it receives.
    """
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    from nemo_simplerl.model.network import pipeline

    schedule = pipeline._schedule
    forward: list[list[int]] = []
    backward: list[list[int]] = []

    def with_shapes(step, model, micro_batches, mesh, **options):
        parts = mesh.tp_size if model.config.sequence_parallel else 1
        shapes = [
            [-(-micro.tokens_BS.shape[1] // parts), micro.tokens_BS.shape[0], model.config.hidden_size]
            for micro in micro_batches
        ]
        forward[:], backward[:] = list(shapes), list(shapes)
        return schedule(step, model, micro_batches, mesh, **options)

    def shapes_of_neighbours(self, tensor_send_next, tensor_send_prev, recv_prev, recv_next):
        return forward.pop(0) if recv_prev else [0] * 3, backward.pop(0) if recv_next else [0] * 3

    _replace(pipeline, "_schedule", with_shapes)
    _replace(P2PCommunicator, "_communicate_shapes", shapes_of_neighbours)


def _replace(owner: Any, name: str, value: Any) -> None:
    """Set an attribute that is there: one that has another name now would leave what it stood for as it is."""
    assert hasattr(owner, name), f"{owner.__name__} has no {name}, which the dry run replaces"
    setattr(owner, name, value)


class _Works:
    def wait(self) -> None: ...


@contextlib.contextmanager
def _one_by_one(group=None, device=None, async_ops: bool = False) -> Iterator[_Works]:
    """In place of torch's: the calls inside are made one after the other, each seen by the recorder."""
    yield _Works()


def _let_storages_resize(recorder: Recorder) -> None:
    original = torch.UntypedStorage.resize_

    def resize_(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        result = original(storage, size)
        recorder.memory.resized(storage, size)
        return result

    torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign]


def _apply(self: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    with torch.no_grad():
        for tensor in [*self.parameters(recurse), *self.buffers(recurse)]:
            tensor.data = function(tensor)
    return self


def _set_data(self: FakeTensor, value: Tensor) -> None:
    known = value.__dict__.get("_simplerl_value")
    torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
    self.__dict__["_simplerl_value"] = known
    if isinstance(value, FakeTensor):
        self.fake_device = value.fake_device
