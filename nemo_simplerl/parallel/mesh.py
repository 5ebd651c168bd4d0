"""The mesh of training ranks: process groups as a value. The only importer of Megatron's parallel_state."""

import logging
import os
from collections.abc import Callable, MutableMapping
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

log = logging.getLogger(__name__)

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
# From 0.19 these say once a rank that GPTModel gets no new features, and that a layout of gradients is computed by
# default. Neither is news to whoever starts a run.
_ADVISERS = ("megatron.core.models.gpt.gpt_model", "megatron.core.distributed.distributed_data_parallel")


@dataclass(frozen=True)
class Mesh:
    """Process groups of this rank and its rank in each.

    `model` holds the ranks that share one replica (tensor x pipeline); `data` the ranks that hold the same shard of
    different replicas. `collection` is what Megatron's constructors take.
    """

    device: torch.device
    rank: int
    world_size: int
    tensor: dist.ProcessGroup
    pipeline: dist.ProcessGroup
    data: dist.ProcessGroup
    model: dist.ProcessGroup
    collection: Any

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
    timeout_s: int,
) -> Mesh:
    """Join the world that torchrun describes (or a world of one) and split it into process groups. Collective.

    Raises ValueError when the world size is not a multiple of the model-parallel size.
    """
    let_megatron_run_without_cuda()
    for name in _ADVISERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    device = _join_world(timeout_s, overlaps=max(tensor_model_parallel_size, context_parallel_size) > 1)
    world_size = dist.get_world_size()
    model_parallel = tensor_model_parallel_size * pipeline_model_parallel_size * context_parallel_size
    if world_size % model_parallel:
        raise ValueError(
            f"{world_size} ranks cannot hold replicas of {model_parallel} ranks (tensor {tensor_model_parallel_size} x "
            f"pipeline {pipeline_model_parallel_size} x context {context_parallel_size}); "
            f"start a multiple of {model_parallel}."
        )
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_model_parallel_size,
            pipeline_model_parallel_size=pipeline_model_parallel_size,
            context_parallel_size=context_parallel_size,
            distributed_timeout_minutes=max(1, timeout_s // 60),
            create_gloo_process_groups=False,
        )
    if device.type == "cuda":
        # Layers fork these generators around dropout, even at rate 0. Nothing else draws from them.
        model_parallel_cuda_manual_seed(0)
    return Mesh(
        device=device,
        rank=dist.get_rank(),
        world_size=world_size,
        tensor=parallel_state.get_tensor_model_parallel_group(),
        pipeline=parallel_state.get_pipeline_model_parallel_group(),
        data=parallel_state.get_data_parallel_group(with_context_parallel=True),
        model=parallel_state.get_model_parallel_group(),
        collection=ProcessGroupCollection.use_mpu_process_groups(),
    )


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
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _join_world(timeout_s: int, *, overlaps: bool) -> torch.device:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        if overlaps:
            queue_communication_first(os.environ, partial(torch.cuda.get_device_capability, device))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Objects (completions, verdicts) travel over gloo, tensors over NCCL where there are GPUs.
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        timeout = timedelta(seconds=timeout_s)
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return device
