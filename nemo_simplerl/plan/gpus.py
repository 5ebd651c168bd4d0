"""The devices a plan can be made for."""

import os
from dataclasses import dataclass

MIB, GIB = 2**20, 2**30

# Total memory in MiB as nvidia-smi reports it. Then, by the makers' data sheets: dense bf16 products in TFLOP/s, the
# memory's bandwidth in GB/s, and that to other GPUs of the node in one direction (NVLink, or PCIe where it has none).
_DEVICES = {
    "l4-24g": (23034, 121, 300, 25),
    "a10-24g": (23028, 125, 600, 25),
    "rtx4090-24g": (24564, 165, 1008, 25),
    "a100-40g": (40960, 312, 1555, 300),
    "l40s-48g": (46068, 362, 864, 25),
    "a6000-48g": (49140, 155, 768, 25),
    "h100-80g": (81559, 989, 3350, 450),
    "a100-80g": (81920, 312, 2039, 300),
    "h20-96g": (97871, 148, 4000, 450),
    "h200-141g": (143771, 989, 4800, 450),
    "b200-180g": (183359, 2250, 8000, 900),
}
CPU = "cpu"
NAMES = (*_DEVICES, CPU)

# Estimates. A trainer process: CUDA context, NCCL's buffers, cuBLAS workspaces.
_TRAINER_BYTES = 3 * GIB
# Share of the memory in freed blocks that the allocator cannot use again.
_FRAGMENTS = 0.05


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What a device does in a second at its best."""

    flops: float  # bf16 products
    memory: float  # bytes read from or written to its memory
    peers: float  # bytes sent to devices of the same node


_CPU_SPEEDS = Speeds(flops=1e11, memory=2e10, peers=5e9)  # of some rank: enough to rank layouts, not to tell a time


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device, its memory and its speeds."""

    name: str
    total: int  # bytes; of the CPU, one rank's share of this machine's memory
    speeds: Speeds

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
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Gpu(name=name, total=memory // ranks_per_node, speeds=_CPU_SPEEDS)
    mib, tflops, memory, peers = _DEVICES[name]
    return Gpu(name=name, total=mib * MIB, speeds=Speeds(flops=tflops * 1e12, memory=memory * 1e9, peers=peers * 1e9))
