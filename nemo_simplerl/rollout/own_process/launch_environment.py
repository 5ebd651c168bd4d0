"""The environment of this process without the variables of its launcher (torchrun, MPI, SLURM) and of Megatron."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# TensorRT-LLM's workers start a world of their own, and they inherit all of the environment. Under torchrun's variables
# they would wait for a store that is not theirs; under those of MPI or SLURM they would try to join that launch.
_OF_A_LAUNCH = re.compile(
    r"(MPI|PMI\d?|PMIX|OMPI|TORCHELASTIC|GROUP|ROLE|MASTER)_.*|(SLURM|SRUN).*"
    r"|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|RAY_ADDRESS"
    # Set for Megatron (parallel/mesh.py). An engine has streams that are to run side by side.
    r"|CUDA_DEVICE_MAX_CONNECTIONS"
)


@contextmanager
def environment_of_its_own(**changes: str) -> Iterator[None]:
    """Context in which no variable of a launcher is set and `changes` are; on exit all are as they were.

    Process-wide: other threads see it too.
    """

    def concerned() -> dict[str, str]:
        return {name: text for name, text in os.environ.items() if name in changes or _OF_A_LAUNCH.fullmatch(name)}

    before = concerned()
    for name in before:
        del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in concerned():
            del os.environ[name]
        os.environ.update(before)
