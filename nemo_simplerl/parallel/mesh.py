"""A mesh of ranks: process groups as a value.

Megatron's own globals (parallel_state) hold one layout of the whole world. They stay uninitialised: a group that is not
handed on fails, where it would else sum over strangers, and several meshes can lie over the same ranks or over others.
"""

import logging
import os
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch.distributed.distributed_c10d import _get_default_store

from nemo_simplerl.parallel.cpu import let_megatron_run_without_cuda
from nemo_simplerl.parallel.grid import Grid

log = logging.getLogger(__name__)

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
# From 0.19 these say once a rank that GPTModel gets no new features, and that a layout of gradients is computed by
# default. Neither is news to whoever starts a run.
_ADVISERS = ("megatron.core.models.gpt.gpt_model", "megatron.core.distributed.distributed_data_parallel")


@dataclass(frozen=True)
class Mesh:
    """Process groups of this rank and its rank in each.

    `model` holds the ranks that share one replica (tensor x pipeline); `data` the ranks that hold the same shard of
    different replicas; `role` all ranks of the mesh, which agree there on what concerns their model. `collection` is
    what Megatron's constructors take.
    """

    device: torch.device
    rank: int
    world_size: int
    tensor: dist.ProcessGroup
    pipeline: dist.ProcessGroup
    data: dist.ProcessGroup
    model: dist.ProcessGroup
    role: dist.ProcessGroup
    grid: Grid
    collection: Any

    @property
    def is_member(self) -> bool:
        """Whether this rank is one of the mesh's. Elsewhere the mesh stands for a model that lives on other ranks: its
        groups hold this rank alone, and it has no batch."""
        return self.rank in self.grid.ranks

    @property
    def tp_size(self) -> int:
        return self.tensor.size()

    @property
    def tp_rank(self) -> int:
        return self.tensor.rank()

    @property
    def pp_size(self) -> int:
        return self.pipeline.size()

    @property
    def pp_rank(self) -> int:
        return self.pipeline.rank()

    @property
    def dp_size(self) -> int:
        return self.data.size()

    @property
    def dp_rank(self) -> int:
        return self.data.rank()

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def stage_rank(self, stage: int) -> int:
        """Global rank of `stage` in this rank's pipeline."""
        return dist.get_global_rank(self.pipeline, stage)


def build_mesh(
    *,
    tensor_model_parallel_size: int,
    pipeline_model_parallel_size: int,
    context_parallel_size: int,
    timeout_s: float,
) -> Mesh:
    """Join the world that torchrun describes (or a world of one), and make a mesh of all its ranks. Collective.

    Raises ValueError when the world size is not a multiple of the model-parallel size.
    """
    assert context_parallel_size == 1, "config.rules.machine refuses others"
    everyone = range(join(timeout_s, overlaps=tensor_model_parallel_size > 1))
    return mesh_over(Grid(everyone, tensor_model_parallel_size, pipeline_model_parallel_size), timeout_s=timeout_s)


def mesh_over(grid: Grid, *, timeout_s: float) -> Mesh:
    """The mesh of the ranks of `grid`, and on every other rank one of that rank alone which is no member (`is_member`).
    Collective over the world that was joined.

    All ranks must make the same meshes in the same order: torch names groups by counting, and ranks whose counts differ
    wait for each other, or reduce with strangers. `timeout_s` limits every collective; without it a group would have
    torch's default, not the world's. Ranks that make up several groups share one, and the world's is not made again.
    """
    made: dict[tuple[int, ...], Any] = {tuple(range(dist.get_world_size())): dist.group.WORLD}
    rank, timeout = dist.get_rank(), timedelta(seconds=timeout_s)

    def own(groups: Sequence[Sequence[int]]) -> Any:
        """This rank's group of these; None where it is in none of them."""
        mine = None
        for ranks in map(tuple, groups):
            if ranks not in made:
                made[ranks] = dist.new_group(ranks, timeout=timeout)
            if rank in ranks:
                mine = made[ranks]
        return mine

    role, tensor, pipeline, data = own([grid.ranks]), own(grid.tensor), own(grid.pipeline), own(grid.data)
    model, stage, alone = own(grid.model), own(grid.stages), own([[one] for one in range(dist.get_world_size())])
    first, ends = own([[ranks[0]] for ranks in grid.pipeline]), own([_ends(ranks) for ranks in grid.pipeline])
    facts = {"device": _device(), "rank": rank, "world_size": dist.get_world_size(), "grid": grid}
    if role is None:
        names = ("tensor", "pipeline", "data", "model", "role")
        return Mesh(**facts, **dict.fromkeys(names, alone), collection=None)
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        # Sequence parallelism gathers into it. It is no group, but only initialize_model_parallel makes it.
        parallel_state._set_global_memory_buffer()
    if torch.cuda.is_available():
        # Layers fork these generators around dropout, even at rate 0. Nothing else draws from them.
        model_parallel_cuda_manual_seed(0, tp_rank=tensor.rank(), ep_rank=0, etp_rank=tensor.rank())
    return Mesh(
        **facts,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        model=model,
        role=role,
        collection=ProcessGroupCollection(
            **dict.fromkeys(("tp", "tp_cp", "expt_tp", "tp_ep"), tensor),
            **dict.fromkeys(("cp", "ep"), alone),
            **dict.fromkeys(("mp", "tp_ep_pp"), model),
            # Given as None, expt_dp would be made by DistributedDataParallel on the ranks of this role alone.
            **dict.fromkeys(("dp", "dp_cp", "intra_dp_cp", "expt_dp", "intra_expt_dp"), data),
            pp=pipeline,
            tp_dp_cp=stage,
            embd=ends,
            pos_embd=first,
            intra_dist_opt=role,  # the distributed optimizer sums its norm over it
            inter_dist_opt=None,
            hcp=None,
        ),
    )


def _ends(ranks: Sequence[int]) -> list[int]:
    """The ranks of a pipeline that hold the embeddings and the output layer."""
    return [ranks[0]] if len(ranks) == 1 else [ranks[0], ranks[-1]]


def queue_communication_first(environ: MutableMapping[str, str], capability: Callable[[], tuple[int, int]]) -> None:
    """Set CUDA_DEVICE_MAX_CONNECTIONS=1, as Megatron's own launcher demands with tensor or context parallelism.

    With one queue of work the GPU starts kernels in the order in which they were launched, so that a gather or a
    reduction begins before the product that it is to overlap with. CUDA reads the variable as it makes a context: call
    this before anything runs on the GPU. From Blackwell on (capability 10) the order needs no help. A value that is set
    stays, and is warned of.
    """
    is_users = CONNECTIONS in environ
    found = environ.setdefault(CONNECTIONS, "1")
    if capability() >= (10, 0):
        if not is_users:
            del environ[CONNECTIONS]
    elif found != "1":
        log.warning(
            f"{CONNECTIONS}={found}: with tensor parallelism Megatron wants 1, so that its communication overlaps with "
            "computation; steps are slower. Unset it, or set it to 1."
        )


def _wait_for_all(store: dist.Store, world_size: int, timeout: timedelta) -> None:
    """Wait until every rank is there. Collective."""
    if store.add("simplerl/joining/count", 1) == world_size:
        store.set("simplerl/joining", "all")
    store.wait(["simplerl/joining"], timeout)


def leave_together() -> None:
    """Wait until every rank is past its last collective. Collective; call before `destroy_mesh` when all went well.

    A rank that closes its gloo sockets while another still reads its part of the last barrier breaks that barrier. So
    the ranks meet in the store, which uses none of those sockets. The first rank may host the store and leaves last.
    """
    store, world_size = _get_default_store(), dist.get_world_size()
    for meeting in ("simplerl/done", "simplerl/leaving"):
        if store.add(f"{meeting}/count", 1) == world_size:
            store.set(meeting, "all")
        if meeting == "simplerl/done" or dist.get_rank() == 0:
            store.wait([meeting])


def destroy_mesh() -> None:
    """Leave the world. Safe to call when no mesh was built."""
    if dist.is_initialized():
        parallel_state.destroy_global_memory_buffer()
        dist.destroy_process_group()


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join(timeout_s: float, *, overlaps: bool, longest_wait_s: float | None = None) -> int:
    """Join the world that torchrun describes, or a world of one; returns its size. Collective.

    timeout_s: limits the wait for all ranks to join and, without longest_wait_s, every collective of the world.
    overlaps: whether a model's tensor ranks are to overlap communication with computation.
    """
    let_megatron_run_without_cuda()
    for name in _ADVISERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    device = _device()
    if device.type == "cuda":
        if overlaps:
            queue_communication_first(os.environ, partial(torch.cuda.get_device_capability, device))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Objects (completions, verdicts) travel over gloo, tensors over NCCL where there are GPUs.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        if "WORLD_SIZE" in os.environ and longest_wait_s is not None:
            # A group's messages between two ranks keep the timeout that it was made with.
            store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
            _wait_for_all(store, size, timeout)
            places = {"rank": rank, "world_size": size, "timeout": timedelta(seconds=longest_wait_s)}
            dist.init_process_group(backend, store=dist.PrefixStore("default_pg", store), **places)
        elif "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return dist.get_world_size()
