"""The double as modules of the name transformer_engine, in this process alone."""

import enum
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from nemo_simplerl.dry.te import attention, layers, optimizers

VERSION = "2.12.0"  # what the double says it is; `contract` has the versions whose interface it keeps


class Format(enum.Enum):
    E4M3 = 1
    HYBRID = 2


class FP8GlobalStateManager:
    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return False

    @classmethod
    def get_fp8_recipe(cls) -> None:
        return None


class CudaRNGStatesTracker:
    def reset(self) -> None: ...


def fp8_autocast(enabled=True, calibrating=False, fp8_recipe=None, fp8_group=None, _graph=False):
    assert not enabled, "the double computes no FP8"
    return nullcontext()


def activation_recompute_forward(activation_recompute=False, recompute_phase=False) -> AbstractContextManager[None]:
    return nullcontext()


def is_fp8_activation_recompute_enabled() -> bool:
    return False


def get_cpu_offload_context(
    enabled=False,
    num_layers=1,
    model_layers=1,
    offload_activations=True,
    offload_weights=False,
    double_buffering=False,
):
    assert not enabled, "the double offloads no activations"
    return nullcontext(), lambda tensor: tensor


def make_weak_ref(x):
    return x


def _unused(name: str, *bases: type) -> Any:
    """A class that Megatron imports, or inherits from, and that no run of ours uses."""
    return type(name, bases or (object,), {})


def modules() -> dict[str, dict[str, Any]]:
    """The names of each module, below transformer_engine."""
    recipes = ("Delayed", "Float8Current", "Float8Block", "MXFP8Block", "NVFP4Block")
    unused_layers = ("GroupedLinear", "LayerNorm", "Fp8Padding", "Fp8Unpadding")
    graph = (
        "make_graphed_callables",
        "restore_fp8_tensors",
        "save_fp8_tensors",
        "set_capture_end",
        "set_capture_start",
    )
    router = ("fused_compute_score_for_moe_aux_loss", "fused_moe_aux_loss", "fused_topk_with_score_function")
    fp8 = {"FP8GlobalStateManager": FP8GlobalStateManager, "fp8_autocast": fp8_autocast}
    operations = {name: _unused(name, nn.Module) for name in ("Sequential", "FusibleOperation")}
    return {
        "": {"__version__": VERSION},
        "common": {},
        "common.recipe": {"Format": Format} | {f"{name}Scaling": _unused(f"{name}Scaling") for name in recipes},
        "pytorch": {
            "Linear": layers.Linear,
            "LayerNormLinear": layers.LayerNormLinear,
            "RMSNorm": layers.RMSNorm,
            "DotProductAttention": attention.DotProductAttention,
            "ops": SimpleNamespace(**operations),
        }
        | {name: _unused(name, nn.Module) for name in unused_layers},
        "pytorch.fp8": fp8,
        "pytorch.quantization": fp8,
        "pytorch.attention": {},
        "pytorch.attention.rope": {"apply_rotary_pos_emb": attention.apply_rotary_pos_emb},
        "pytorch.optimizers": {
            name: getattr(optimizers, name)
            for name in ("FusedAdam", "FusedSGD", "multi_tensor_applier", "multi_tensor_l2norm", "multi_tensor_scale")
        },
        "pytorch.distributed": {
            "activation_recompute_forward": activation_recompute_forward,
            "is_fp8_activation_recompute_enabled": is_fp8_activation_recompute_enabled,
            "checkpoint": None,
            "get_all_rng_states": dict,
            "CudaRNGStatesTracker": CudaRNGStatesTracker,
        },
        "pytorch.cpu_offload": {"get_cpu_offload_context": get_cpu_offload_context},
        "pytorch.graph": dict.fromkeys(graph),
        "pytorch.router": dict.fromkeys(router),
        "pytorch.module": {},
        "pytorch.module.base": {"TransformerEngineBaseModule": _unused("TransformerEngineBaseModule", nn.Module)},
        "pytorch.tensor": {"QuantizedTensor": _unused("QuantizedTensor", torch.Tensor)},
        "pytorch.utils": {"make_weak_ref": make_weak_ref},
    }


def install() -> None:
    """Let `import transformer_engine` find the double. Before Megatron is imported, which looks for it once."""
    for name, contents in modules().items():
        full_name = f"transformer_engine.{name}".rstrip(".")
        module = ModuleType(full_name)
        module.__spec__ = ModuleSpec(full_name, None, origin=__file__, is_package=True)
        module.__path__ = []
        vars(module).update(contents)
        sys.modules[full_name] = module
        parent, _, child = full_name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
