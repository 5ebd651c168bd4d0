"""The devices a plan can be made for."""

import os
from dataclasses import dataclass

MIB, GIB = 2**20, 2**30

# Total memory in MiB as nvidia-smi reports it.
_TOTAL_MIB = {
    "l4-24g": 23034,
    "a10-24g": 23028,
    "rtx4090-24g": 24564,
    "a100-40g": 40960,
    "l40s-48g": 46068,
    "a6000-48g": 49140,
    "h100-80g": 81559,
    "a100-80g": 81920,
    "h20-96g": 97871,
    "h200-141g": 143771,
    "b200-180g": 183359,
}
CPU = "cpu"
NAMES = (*_TOTAL_MIB, CPU)

# Estimates. A trainer process: CUDA context, NCCL's buffers, cuBLAS workspaces.
_TRAINER_BYTES = 3 * GIB
# The engine's own process beside it: another context, CUDA graphs, its forward pass.
_ENGINE_BYTES = 3 * GIB
# Freed blocks that the allocator cannot put to use.
_FRAGMENTS = 0.05


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    total: int  # bytes; of the CPU, one rank's share of this machine's memory

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU

    def capacity(self, engine: str) -> int:
        """Bytes left for tensors beside contexts, communication buffers and fragments."""
        if self.is_cpu:
            return int(self.total * (1 - _FRAGMENTS))
        processes = _TRAINER_BYTES + (_ENGINE_BYTES if engine == "trtllm" else 0)
        return int(self.total * (1 - _FRAGMENTS)) - processes


def gpu(name: str, ranks_per_node: int) -> Gpu:
    """The device called `name`, one of NAMES."""
    if name == CPU:
        return Gpu(name=name, total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_per_node)
    return Gpu(name=name, total=_TOTAL_MIB[name] * MIB)
