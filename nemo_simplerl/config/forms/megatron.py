"""`torch_dist` checkpoints of Megatron-LM: an iteration whose common state holds the command's arguments, `args`."""

from pathlib import Path
from typing import Any

from nemo_simplerl.config.forms.bridge import is_bridge
from nemo_simplerl.config.forms.description import Description
from nemo_simplerl.config.forms.iterations import (
    check_torch_dist,
    common_state,
    holds_iterations,
    is_iteration,
    iteration_of,
)
from nemo_simplerl.config.forms.nemo2 import is_nemo2

HF_FILES = "hf"  # the folder in which we put the tokenizer's files, for which Megatron-LM has no place
# Name in Megatron-core: name in Megatron-LM's arguments, where they differ.
_RENAMED = {
    "seq_length": "max_position_embeddings",
    "rope_scaling": "use_rope_scaling",
    "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
    "num_moe_experts": "num_experts",
    "gated_linear_unit": "swiglu",
}


def is_megatron(path: Path) -> bool:
    """Whether `path` is a checkpoint of Megatron-LM, or a folder of them, or a part of one."""
    is_single = is_iteration(path) and not is_nemo2(path)  # the first releases of NeMo 2 had weights at the top
    return (is_single or holds_iterations(path)) and not is_bridge(path)


def describe(path: Path) -> Description:
    """The model of a checkpoint. Raises ValueError that says what it lacks, or what it is instead."""
    folder = iteration_of(path)
    check_torch_dist(folder)
    args = getattr(common_state(folder).get("args"), "state", None)
    if not isinstance(args, dict):
        raise ValueError(
            f"{folder} holds neither run_config.yaml nor args in its common state, so nothing says how large the model "
            "is; if it is weights/ of a NeMo 2 folder, give the folder above."
        )
    inner, name = folder / HF_FILES, args.get("tokenizer_model")
    return Description(
        form="megatron",
        weights=folder,
        where=folder / "args",
        settings=_settings(args),
        class_name="",  # nothing names the family
        tokenizer=name if isinstance(name, str) else None,
        tokenizer_folder=inner if inner.is_dir() else None,
    )


def _settings(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments under Megatron-core's names (megatron/training/arguments.py: core_transformer_config_from_args)."""
    settings = args | {ours: args.get(theirs) for ours, theirs in _RENAMED.items()}
    is_swiglu = bool(args.get("swiglu")) and not args.get("squared_relu")
    return settings | {
        "activation_func": "silu" if is_swiglu else "gelu",
        "layernorm_epsilon": args.get("layernorm_epsilon", args.get("norm_epsilon")),
        "num_query_groups": args.get("num_query_groups") if args.get("group_query_attention") else None,
        "seq_length": args.get("max_position_embeddings") or args.get("seq_length"),
        "share_embeddings_and_output_weights": not args.get("untie_embeddings_and_output_weights"),
        "layernorm_zero_centered_gamma": args.get("layernorm_zero_centered_gamma") or args.get("apply_layernorm_1p"),
        "heterogeneous_block_specs": bool(args.get("heterogeneous_layers_config_path")),
        # The arguments hold the padded size, and the tokenizer's nowhere.
        "vocab_size": None,
    }
