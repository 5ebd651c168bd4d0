"""Patches that let Megatron-core run where CUDA is absent.

Megatron-core names the device "cuda" in a few places. Each patch here is for one of them and says which, and for which
versions: "from 0.16" is needed by 0.16.1 and 0.19.2 alike, "from 0.19" by 0.19.2 and not by 0.16.1. What a version does
not need, it does not call. Nothing is patched on a machine with a GPU. Without Triton, which comes with CUDA builds of
torch, `no_triton` is needed too (from 0.19).
"""

import contextlib
import types

import torch

_CUDA_FREE = False


class _TorchWithoutCuda(types.ModuleType):
    """The torch module, except that tensors asked for on "cuda" are made on the CPU."""

    _FACTORIES = frozenset({"zeros", "empty", "ones", "tensor", "full", "arange"})

    def __getattr__(self, name: str):
        value = getattr(torch, name)
        if name not in self._FACTORIES:
            return value

        def on_cpu(*args, device=None, **kwargs):
            return value(*args, device="cpu" if str(device).startswith("cuda") else device, **kwargs)

        return on_cpu


def let_megatron_run_without_cuda() -> bool:
    """Apply the patches once where `torch.cuda.is_available()` is false. Returns whether CUDA is absent."""
    global _CUDA_FREE
    if torch.cuda.is_available() or _CUDA_FREE:
        return _CUDA_FREE
    _CUDA_FREE = True

    # From 0.16. Layers, gradient buffers and point-to-point shape messages allocate on torch.cuda.current_device().
    torch.cuda.current_device = lambda: torch.device("cpu")
    # From 0.16. Point-to-point communication and checkpoint staging wait for, and free, the device.
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    # From 0.19. Gradient reduction asks for the stream on which a CUDA graph's gradients would have to be waited for;
    # there are none, so the answer is never used.
    torch.cuda.current_stream = lambda device=None: None
    # From 0.16. Tied embeddings are moved to the device before the first and last stage compare them.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    # From 0.16. The optimizers sort parameters by type name and know only torch.cuda.FloatTensor and its half-precision
    # kin.
    torch.Tensor.type = _typed_as_cuda(torch.Tensor.type)

    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, grad_scaler, optimizer
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random

    # From 0.16. Token counters, overflow flags and gradient norms are made with device="cuda".
    proxy = _TorchWithoutCuda("torch")
    for module in (schedules, clip_grads, optimizer, grad_scaler, utils):
        module.torch = proxy
    # From 0.16. Activation recomputation saves and restores the CUDA generator beside the CPU's.
    random._get_cuda_rng_state = lambda *args, **kwargs: None
    random._set_cuda_rng_state = lambda *args, **kwargs: None
    # From 0.16. Sequence parallelism forks it around dropout; every dropout here is 0.
    random.CudaRNGStatesTracker.fork = lambda self, *args, **kwargs: contextlib.nullcontext()
    return True


def _typed_as_cuda(original):
    def type_(self, *args, **kwargs):
        if args or kwargs:
            return original(self, *args, **kwargs)
        return original(self).replace("torch.", "torch.cuda.", 1)

    return type_
