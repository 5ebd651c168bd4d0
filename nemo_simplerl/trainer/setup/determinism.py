"""trainer.deterministic: bit-identical reruns on one machine and layout, as far as the libraries can promise.

On a CPU nothing has to be pinned: reruns are bit-identical anyway.
"""

import os

import torch

# cuBLAS and Transformer Engine read theirs when they first use the GPU, NCCL when its first group is made.
VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}


def pin(deterministic: bool) -> None:
    """Select deterministic kernels where asked, before anything uses a GPU. Variables that are set keep their value."""
    if not deterministic:
        return
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if torch.cuda.is_available():
        # An operation that has no deterministic kernel runs all the same, and torch warns of it by name.
        torch.use_deterministic_algorithms(True, warn_only=True)


def notes(deterministic: bool) -> list[str]:
    """One message with what is pinned and what is not; none where `deterministic` is false."""
    if not deterministic:
        return []
    values = ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES)
    return [
        f"trainer.deterministic: {values}, torch's and Megatron's deterministic kernels. Out of reach: the kernels of "
        "a TensorRT-LLM engine, and another layout, number of ranks or kind of GPU, which sum in another order."
    ]
