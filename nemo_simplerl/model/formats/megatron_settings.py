"""Turns the settings of a Megatron-core model, as NeMo 2, Megatron-Bridge and Megatron-LM keep them, into a Hugging
Face config.json, and back. Pure functions.
"""

from typing import Any

import torch

from nemo_simplerl.config.families import FAMILIES, family_of, rope_type
from nemo_simplerl.config.forms.description import Description
from nemo_simplerl.config.forms.folder import named_family
from nemo_simplerl.config.hf_config import DEFAULT_THETA
from nemo_simplerl.model.formats import nemo_config

# Setting: the values that mean what our layers compute. None stands for a setting that is left out.
_SUPPORTED: dict[str, tuple] = {
    "normalization": ("RMSNorm",),
    "activation_func": ("silu",),
    "gated_linear_unit": (True,),
    "add_bias_linear": (False,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (None, 1.0),
    "rotary_interleaved": (None, False),
    "num_moe_experts": (None, 0),
    "window_size": (None,),
    "attention_chunk_size": (None,),
    "no_rope_freq": (None,),
    "nope_layer_interval": (None,),
    "layernorm_zero_centered_gamma": (None, False),
    "apply_residual_connection_post_layernorm": (None, False),
    "multi_latent_attention": (None, False),
    "experimental_attention_variant": (None,),
    "linear_attention_freq": (None,),
    "attention_output_gate": (None, False),
    "qk_l2_norm": (None, False),
    "softmax_scale": (None,),
    "softmax_type": (None, "vanilla"),
    "glu_linear_offset": (None, 0.0),
    "activation_func_clamp_value": (None,),
    "rotary_scaling_factor": (None,),
    "mrope_section": (None,),
    "mtp_num_layers": (None, 0),
    "heterogeneous_block_specs": (None, False),
    "is_hybrid_model": (None, False),
    "hybrid_layer_pattern": (None,),
    "enable_hyper_connections": (None, False),
}
_NEEDED = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "seq_length")
# Megatron-core's constants, beside which its settings hold a flag and the factor
# (megatron/core/models/common/embeddings/rotary_pos_embedding.py: _apply_scaling).
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_NEMO2_LLAMA3 = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")


def hf_config(described: Description, vocab_size: int) -> dict[str, Any]:
    """The config.json of a described model. vocab_size: used where the settings name none.

    Raises one ValueError that lists every setting with which the model would compute something else.
    """
    settings, where = _without_idle_window(described.settings), str(described.where)
    has_window = settings.get("window_size") is not None and FAMILIES[named_family(described)].window is not None
    problems = [
        f"{name} is {settings.get(name)!r}, only {' or '.join(repr(value) for value in allowed)} is supported"
        for name, allowed in _SUPPORTED.items()
        if settings.get(name) not in allowed and not (name == "window_size" and has_window)
    ]
    problems += [f"{name} is missing" for name in _NEEDED if settings.get(name) is None]
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}.")
    return nemo_config.hf_config(_as_nemo_yaml(settings), vocab_size, where, lambda: named_family(described))


def settings_of(hf: dict, dtype: torch.dtype, *, critic: bool) -> dict[str, Any]:
    """The settings of a model with this HF config, without those of its rotary scaling.

    A critic's value head is an output layer of one row, which shares nothing with the embeddings.
    """
    family = family_of(hf)
    nemo_config.precision_of(dtype)  # refuses what Megatron has no word for
    if nemo_config.window_keys(hf):
        raise ValueError(
            f"sliding_window is {hf['sliding_window']} of {hf['max_position_embeddings']} positions, which these forms "
            "were not tried with; keep the model as hf or nemo."
        )
    return {
        **nemo_config.layer_sizes(hf),
        "seq_length": hf["max_position_embeddings"],
        "vocab_size": hf["vocab_size"],
        "make_vocab_size_divisible_by": nemo_config.vocab_divisor(hf["vocab_size"]),
        "init_method_std": hf.get("initializer_range", 0.02),
        "layernorm_epsilon": hf["rms_norm_eps"],
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": family.qkv_bias,
        "qk_layernorm": family.qk_norm,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "share_embeddings_and_output_weights": not critic and bool(hf.get("tie_word_embeddings", False)),
        "position_embedding_type": "rope",
        "rotary_base": hf.get("rope_theta") or DEFAULT_THETA,
        "rotary_percent": 1.0,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }


def rope_settings(hf: dict, form: str) -> dict[str, Any]:
    """The settings of a model's rotary scaling where a flag and a factor must say it, as in Megatron-Bridge and
    Megatron-LM. form: the name for the error.

    Raises ValueError for a scaling with other numbers than Megatron-core's constants.
    """
    scaling, kind = hf.get("rope_scaling") or {}, rope_type(hf)
    if kind == "linear":
        return {"seq_len_interpolation_factor": scaling["factor"]}
    if kind != "llama3":
        return {}
    other = {name: scaling[name] for name, value in _LLAMA3.items() if scaling[name] != value}
    if other:
        raise ValueError(
            f"rope_scaling has {_numbers(other)}: {form} cannot say it. Its settings hold the factor alone, beside "
            f"Megatron-core's own {_numbers(_LLAMA3)}; keep the model as hf, nemo or nemo2."
        )
    return {"rope_scaling": True, "rope_scaling_factor": scaling["factor"]}


def nemo2_rope_settings(hf: dict) -> dict[str, Any]:
    """The settings of a model's rotary scaling in NeMo 2, whose Llama 3.1 has all of its numbers.

    Raises ValueError for that scaling in another family.
    """
    scaling, kind = hf.get("rope_scaling") or {}, rope_type(hf)
    if kind != "llama3":
        return rope_settings(hf, "nemo2")
    if hf["model_type"] != "llama":
        raise ValueError(
            f"rope_scaling of type llama3 in a {hf['model_type']}: nemo2 cannot say it, only its Llama has it; "
            "keep the model as hf or nemo."
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {theirs: scaling[ours] for theirs, ours in zip(_NEMO2_LLAMA3, names, strict=True)}


def _without_idle_window(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, without an attention window that reaches over every position."""
    window, length = settings.get("window_size"), settings.get("seq_length")
    left = window[0] if isinstance(window, list | tuple) and window else None
    is_idle = isinstance(left, int) and isinstance(length, int) and (left < 0 or left >= length - 1)
    return settings | {"window_size": None} if is_idle else settings


def _numbers(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _as_nemo_yaml(settings: dict[str, Any]) -> dict[str, Any]:
    """The keys of NeMo 1's model_config.yaml, from which `nemo_config` makes a config.json."""
    same = (
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "layernorm_epsilon",
        "qk_layernorm",
        "rotary_base",
        "seq_len_interpolation_factor",
        "share_embeddings_and_output_weights",
        "window_size",
    )
    std = settings.get("init_method_std")
    yaml = {name: settings.get(name) for name in same} | {
        "max_position_embeddings": settings["seq_length"],
        "qkv_bias": settings.get("add_qkv_bias"),
        "override_vocab_size": settings.get("vocab_size"),
        "init_method_std": 0.02 if std is None else std,
    }
    if settings.get("scale_factor") is not None:
        return yaml | {"scale_positional_embedding": True} | {name: settings.get(name) for name in _NEMO2_LLAMA3}
    if settings.get("rope_scaling"):
        return yaml | {"scale_positional_embedding": True, "scale_factor": settings.get("rope_scaling_factor")}
    return yaml
