"""Methods added to vLLM's workers, which load this module by its name (see server.py), before they build the model.

Only new method names: vLLM refuses an extension that hides an attribute of its worker. Loading it has two effects on a
worker's process: it ends with the process that started it, and it keeps the weights of linear layers as they are sent.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from vllm.config import set_current_vllm_config
from vllm.distributed import get_tp_group
from vllm.model_executor.layers import utils as linear_layers
from vllm.v1.sample.sampler import Sampler

from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.own_process.handles import device_uuid, open_handles
from nemo_simplerl.rollout.vllm.held import held_tensors
from nemo_simplerl.rollout.vllm.sampling import over_all_ids

_PR_SET_PDEATHSIG = 1


def _keep_as_sent(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Take the place of vLLM's packing of a linear layer's weights, on a CPU, into a form that nothing can read.

    The layer then computes with its parameters, as it does on a GPU: weights are loaded in place and read back.
    """
    layer.cpu_linear = torch.nn.functional.linear


linear_layers.dispatch_cpu_unquantized_gemm = _keep_as_sent
if multiprocessing.parent_process() is not None:  # else this is the trainer's child, which watches its pipe
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Extension:
    """The worker of server.py. Collective methods are called on all workers of the engine."""

    rank: int
    device: torch.device
    vllm_config: Any
    model_runner: Any
    get_model: Callable[[], torch.nn.Module]

    def simplerl_prepare(self, vocab_limit: int | None) -> str:
        """Forbid the ids from `vocab_limit` on; returns the name of this worker's device. All workers have started.

        A worker that is a process of its own ignores SIGTERM and SIGINT from here on, as its parent does: a launcher
        may tell every process, and vLLM's handlers would end it.
        """
        if multiprocessing.parent_process() is not None:
            for ignored in (signal.SIGINT, signal.SIGTERM):
                signal.signal(ignored, signal.SIG_IGN)
        # On a CPU workers talk through shared memory, which all have opened by now; nameless it is gone with them.
        if name := os.environ.get("VLLM_DIST_IDENT"):
            for file in Path("/dev/shm").glob(f"{name}-*cpushm*"):
                file.unlink(missing_ok=True)
        sampler = self.model_runner.sampler
        if not isinstance(sampler, Sampler):
            raise RuntimeError("vLLM chose its second model runner, whose log-probabilities are not understood here.")
        sampler.forward = over_all_ids(sampler.forward, vocab_limit)
        return device_uuid(self.device, self.rank)

    def simplerl_load(self, handles: list[str]) -> None:
        """Copy this worker's part of a bucket into place. The bucket may be overwritten when this returns."""
        bucket = open_handles(handles[self.rank], self.device.index or 0)
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            self.get_model().load_weights(iter(bucket))
        del bucket
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.ipc_collect()

    def simplerl_digests(self) -> dict[str, int]:
        """The digests of the whole tensors that the workers hold together, by name. Collective."""
        return {name: digest(tensor) for name, tensor in held_tensors(self.get_model(), self._simplerl_gather)}

    def _simplerl_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        group = get_tp_group()
        if group.world_size == 1:
            return [tensor]
        flat = tensor.contiguous().view(-1).view(torch.uint8)  # any dtype, by any backend
        parts = [torch.empty_like(flat) for _ in range(group.world_size)]
        dist.all_gather(parts, flat, group=group.device_group)
        return [part.view(tensor.dtype).view(tensor.shape) for part in parts]
