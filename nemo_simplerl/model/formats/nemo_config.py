"""Turns a Hugging Face config.json into a NeMo `model_config.yaml`, and back. Pure functions.

Keys are those of NeMo's megatron_gpt_config.yaml and of its own converters.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
import yaml as pyyaml

from nemo_simplerl.config.families import (
    check_hf_config,
    family_of,
    family_of_nemo,
    rope_type,
    window_of,
    window_of_megatron,
)
from nemo_simplerl.config.hf_config import DEFAULT_THETA
from nemo_simplerl.model.hf_map import heads_of

_GPT = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
_CRITIC = "nemo_aligner.models.nlp.gpt.megatron_gpt_critic.MegatronGPTCriticModel"
# The last line of NeMo that has these model classes.
NEMO_VERSION = "2.2.1"
_PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "32", torch.float16: "16"}
_UNSUPPORTED = {
    # key: the values that mean what our layers compute
    "normalization": ("rmsnorm",),
    "activation": ("fast-swiglu", "swiglu"),
    "position_embedding_type": ("rope",),
    "transformer_block_type": ("pre_ln",),
    "bias": (False,),
    "rotary_percentage": (1.0,),
    "rotary_interleaved": (False,),
    "apply_query_key_layer_scaling": (False, True),  # a reordering of the same product
    "num_moe_experts": (None, 0, 1),
    "layernorm_zero_centered_gamma": (False,),
    "apply_embedding_scaling": (False,),
    "window_size": (None,),
}
# What is the same for every model.
_CONSTANTS = {
    "mcore_gpt": True,
    "micro_batch_size": 1,
    "global_batch_size": 1,
    "rampup_batch_size": None,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "context_parallel_size": 1,
    "use_scaled_init_method": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "ffn_dropout": 0.0,
    "apply_query_key_layer_scaling": False,
    "normalization": "rmsnorm",
    "do_layer_norm_weight_decay": False,
    "pre_process": True,
    "post_process": True,
    "persist_layer_norm": True,
    "bias": False,
    "activation": "fast-swiglu",
    "headscale": False,
    "transformer_block_type": "pre_ln",
    "openai_gelu": False,
    "normalize_attention_scores": True,
    "position_embedding_type": "rope",
    "rotary_percentage": 1.0,
    "attention_type": "multihead",
    "native_amp_init_scale": 4294967296,
    "native_amp_growth_interval": 1000,
    "hysteresis": 2,
    "fp32_residual_connection": False,
    "fp16_lm_cross_entropy": False,
    "megatron_amp_O2": False,
    "grad_allreduce_chunk_size_mb": 125,
    "grad_div_ar_fusion": True,
    "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_add_fusion": False,
    "masked_softmax_fusion": True,
    "apply_rope_fusion": True,
    "get_attention_mask_from_fusion": True,
    "seed": 1234,
    "resume_from_checkpoint": None,
    "use_cpu_initialization": False,
    "onnx_safe": False,
    "apex_transformer_log_level": 30,
    "gradient_as_bucket_view": True,
    "sync_batch_comm": False,
    "activations_checkpoint_granularity": None,
    "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None,
    "num_micro_batches_with_partial_activation_checkpoints": None,
    "activations_checkpoint_layers_per_pipeline": None,
    "sequence_parallel": False,
    "transformer_engine": True,
    "fp8": False,
    "name": "megatron_gpt",
}


def layer_sizes(hf: dict) -> dict[str, int]:
    """The sizes of a model with this HF config, under the names that all of Megatron's forms share."""
    heads = heads_of(hf)
    return {
        "num_layers": hf["num_hidden_layers"],
        "hidden_size": hf["hidden_size"],
        "ffn_hidden_size": hf["intermediate_size"],
        "num_attention_heads": heads.num_heads,
        "num_query_groups": heads.num_groups,
        "kv_channels": heads.head_dim,
    }


def nemo_config(hf: dict, *, dtype: torch.dtype, tokenizer: str | None, critic: bool) -> dict[str, Any]:
    """The yaml of a model with this HF config. `tokenizer` is the folder or hub name that NeMo loads it from.

    NeMo-Aligner's critic has its head beside tied embeddings, so that it needs no output layer.
    """
    family = family_of(hf)
    length = hf["max_position_embeddings"]
    return {
        **_CONSTANTS,
        "encoder_seq_length": length,
        "max_position_embeddings": length,
        **layer_sizes(hf),
        "init_method_std": hf.get("initializer_range", 0.02),
        "layernorm_epsilon": hf["rms_norm_eps"],
        "make_vocab_size_divisible_by": vocab_divisor(hf["vocab_size"]),
        "override_vocab_size": hf["vocab_size"],
        "qkv_bias": family.qkv_bias,
        "qk_layernorm": family.qk_norm,
        **window_keys(hf),
        "rotary_base": hf.get("rope_theta") or DEFAULT_THETA,
        **_rope_keys(hf),
        "share_embeddings_and_output_weights": critic or bool(hf.get("tie_word_embeddings", False)),
        "tokenizer": {"library": "huggingface", "type": tokenizer, "model": None, "use_fast": True},
        "precision": precision_of(dtype),
        "data": {
            "data_prefix": None,
            "index_mapping_dir": None,
            "data_impl": "mmap",
            "splits_string": "900,50,50",
            "seq_length": length,
            "skip_warmup": True,
            "num_workers": 0,
            "dataloader_type": "single",
            "reset_position_ids": False,
            "reset_attention_mask": False,
            "eod_mask_loss": False,
        },
        "nsys_profile": {"enabled": False},
        "optim": {"name": "distributed_fused_adam", "lr": 1e-6},
        **({"num_attributes": 1, "output_sequence": True} if critic else {}),
        "target": _CRITIC if critic else _GPT,
        "nemo_version": NEMO_VERSION,
    }


class _Loader(pyyaml.SafeLoader):
    """Reads YAML as OmegaConf writes it: 1e-6 is a number. Aliases are refused: a few can stand for gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(pyyaml.AliasEvent):
            raise pyyaml.YAMLError("it has aliases (*name), which are not read")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*\.?[\d_]*[eE][-+]?\d+"), list("-+0123456789")
)


def parse_yaml(content: bytes, where: str) -> dict[str, Any]:
    """The settings of a `model_config.yaml`. Raises ValueError for anything else."""
    try:
        config = pyyaml.load(content, _Loader)
    except (pyyaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where} is no YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where} holds no settings.")
    return config


def hf_config(
    yaml: dict[str, Any], vocab_size: int, where: str, stated: Callable[[], str | None] = lambda: None
) -> dict[str, Any]:
    """The config.json of a NeMo GPT model. `vocab_size` is used where the yaml does not override it.

    stated: asked for the model_type that another file of the archive names, where the yaml fits several families.
    Raises one ValueError that lists every key with which the model would compute something else.
    """
    unknown, window = [], None
    try:
        family = family_of_nemo(yaml, stated)
        window = window_of_megatron(yaml) if family.window else None
    except ValueError as error:
        unknown = [str(error)]
    problems = [
        f"{key} is {yaml[key]!r}, only {' or '.join(map(repr, allowed))} is supported"
        for key, allowed in _UNSUPPORTED.items()
        if yaml.get(key, allowed[0]) not in allowed and not (key == "window_size" and window)
    ]
    needed = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "layernorm_epsilon")
    problems += [f"{key} is missing" for key in needed if yaml.get(key) is None] + unknown
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems) + ".")
    heads = yaml["num_attention_heads"]
    hf = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "head_dim": yaml.get("kv_channels"),
        "hidden_act": "silu",
        "hidden_size": yaml["hidden_size"],
        "initializer_range": yaml.get("init_method_std", 0.02),
        "intermediate_size": yaml["ffn_hidden_size"],
        "max_position_embeddings": yaml.get("max_position_embeddings") or yaml.get("encoder_seq_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": yaml["num_layers"],
        "num_key_value_heads": yaml.get("num_query_groups") or heads,
        "rms_norm_eps": yaml["layernorm_epsilon"],
        "rope_scaling": _rope_scaling(yaml),
        "rope_theta": _number(yaml.get("rotary_base") or DEFAULT_THETA),
        "tie_word_embeddings": bool(yaml.get("share_embeddings_and_output_weights", True)),
        "use_cache": True,
        "vocab_size": yaml.get("override_vocab_size") or vocab_size,
    }
    if family.window:
        hf["sliding_window"] = window
    check_hf_config(hf, where)
    hf["head_dim"] = heads_of(hf).head_dim
    if "head_dim" not in family.own_sizes and hf["head_dim"] == hf["hidden_size"] // heads:
        del hf["head_dim"]  # transformers' Qwen2 has no such key, and its Llama works it out
    return hf


def window_keys(hf: dict) -> dict[str, Any]:
    """The key of a model's attention window, which counts the tokens before one; none where it has full attention."""
    window = window_of(hf)
    return {"window_size": [window - 1, 0]} if window and window < hf["max_position_embeddings"] else {}


def vocab_divisor(vocab_size: int) -> int:
    """The largest power of two up to 128 that divides the vocabulary: NeMo then adds no rows on one tensor rank."""
    return min(128, vocab_size & -vocab_size)


def precision_of(dtype: torch.dtype) -> str:
    """NeMo's word for the weights' type. Raises ValueError where it has none."""
    if dtype not in _PRECISIONS:
        raise ValueError(f"the weights are {str(dtype).removeprefix('torch.')}, which NeMo has no word for; cast them.")
    return _PRECISIONS[dtype]


def _rope_keys(hf: dict) -> dict[str, Any]:
    scaling, kind = hf.get("rope_scaling") or {}, rope_type(hf)
    if kind == "linear":
        return {"seq_len_interpolation_factor": scaling["factor"]}
    if kind == "llama3":
        return {
            "scale_positional_embedding": True,
            "scale_factor": scaling["factor"],
            "low_freq_factor": scaling["low_freq_factor"],
            "high_freq_factor": scaling["high_freq_factor"],
            "old_context_len": scaling["original_max_position_embeddings"],
        }
    return {"scale_positional_embedding": False}


def _rope_scaling(yaml: dict[str, Any]) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json; None where the yaml asks for none.

    NeMo's defaults of Llama 3.1 stand in for keys it left out (nemo/collections/common/parts/utils.py).
    """
    if yaml.get("scale_positional_embedding"):
        return {
            "rope_type": "llama3",
            "factor": _number(yaml.get("scale_factor", 8)),
            "low_freq_factor": _number(yaml.get("low_freq_factor", 1)),
            "high_freq_factor": _number(yaml.get("high_freq_factor", 4)),
            "original_max_position_embeddings": yaml.get("old_context_len", 8192),
        }
    if yaml.get("seq_len_interpolation_factor"):
        return {"rope_type": "linear", "factor": _number(yaml["seq_len_interpolation_factor"])}
    return None


def _number(value: Any) -> Any:
    """An integer as the float that transformers expects; anything else unchanged, for check_hf_config to judge."""
    return float(value) if type(value) is int else value
