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
# Share of the memory in freed blocks that the allocator cannot use again.
_FRAGMENTS = 0.05


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device and its memory."""

    name: str
    total: int  # bytes; of the CPU, one rank's share of this machine's memory

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU

    def capacity(self, engine_bytes: int) -> int:
        """Bytes left for tensors beside contexts, communication buffers, fragments and the engine's own process."""
        if self.is_cpu:
            return int(self.total * (1 - _FRAGMENTS))
        return int(self.total * (1 - _FRAGMENTS)) - _TRAINER_BYTES - engine_bytes


def gpu(name: str, ranks_per_node: int) -> Gpu:
    """The device called `name`, one of NAMES."""
    if name == CPU:
        return Gpu(name=name, total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_per_node)
    return Gpu(name=name, total=_TOTAL_MIB[name] * MIB)
