"""trainer.deterministic: the same bits in every run of one machine and layout, as far as the libraries can promise.

On a CPU nothing has to be pinned: a rerun is the same to the bit as it is.
"""

import os

import torch

# cuBLAS and Transformer Engine read theirs when they first meet the GPU, NCCL when its first group is made.
VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}


def pin(deterministic: bool) -> None:
    """Call before anything touches a GPU. A variable that is set already keeps its value."""
    if not deterministic:
        return
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if torch.cuda.is_available():
        # An operation that has no deterministic kernel runs all the same, and torch warns of it by name.
        torch.use_deterministic_algorithms(True, warn_only=True)


def notes(deterministic: bool) -> list[str]:
    """What is pinned and what is not, in a line for the log; none where nothing was asked for."""
    if not deterministic:
        return []
    values = ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES)
    return [
        f"trainer.deterministic: {values}, torch's and Megatron's deterministic kernels. Out of reach: the kernels of "
        "a TensorRT-LLM engine, and another layout, number of ranks or kind of GPU, which sum in another order."
    ]
