"""Writers of NeMo 2 folders and of checkpoints of Megatron-Bridge and Megatron-LM. The layouts and names are those that
`config.forms` reads.
"""

import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from nemo_simplerl.config.forms import bridge, iterations, megatron, nemo2
from nemo_simplerl.model.conversion.nemo_writer import Create, write_distributed, write_files
from nemo_simplerl.model.formats import nemo2_context
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.megatron_settings import nemo2_rope_settings, rope_settings, settings_of

_ITERATION = "iter_0000000"
_MODULE = "module."  # before every key in NeMo 2


@dataclass(frozen=True)
class Writing:
    """A model to be written. `hf` is its config.json, `small` the files beside its weights, `place` where the folder
    will stand when it is complete."""

    hf: dict
    dtype: torch.dtype
    is_critic: bool
    small: Mapping[str, bytes | Extent]
    place: Path

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.hf, self.dtype, critic=self.is_critic)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def has_tokenizer(self) -> bool:
        return any("token" in name for name in self.small)


# Writes a model below the folder of `create`.
Write = Callable[[Create, Iterable[tuple[str, Tensor]]], None]


def writer_of(form: str, model: Writing) -> Write:
    """The function that writes `model` in a form of `config.forms`.

    Raises ValueError, before anything is written, for a model that the form cannot hold.
    """
    return {"nemo2": _nemo2, "bridge": _bridge, "megatron": _megatron}[form](model)


def _nemo2(model: Writing) -> Write:
    settings = model.settings | nemo2_rope_settings(model.hf)
    tokenizer = nemo2.TOKENIZER if model.has_tokenizer else None
    told = {"dtype": model.dtype_name, "tokenizer": tokenizer}
    if model.hf["model_type"] == "mistral":
        settings["window_size"] = None  # the class's default is a window
    tree = nemo2_context.io_json(model.hf, settings, **told)
    filled = nemo2_context.model_yaml(model.hf, settings, **told)

    def write(create: Create, tensors: Iterable[tuple[str, Tensor]]) -> None:
        _write(create, f"{nemo2.CONTEXT}/{nemo2.IO_JSON}", json.dumps(tree, indent=2).encode())
        _write(create, f"{nemo2.CONTEXT}/{nemo2.MODEL_YAML}", _yaml(filled))
        write_files(create, f"{nemo2.CONTEXT}/{nemo2.TOKENIZER}", model.small)
        inside = _below(create, nemo2.WEIGHTS)
        write_distributed(inside, tensors, model.hf["num_hidden_layers"], prefix=_MODULE)

    return write


def _bridge(model: Writing) -> Write:
    settings = model.settings | rope_settings(model.hf, "bridge")
    provider = (
        {"_target_": bridge.PROVIDER}
        | settings
        | {
            "should_pad_vocab": False,
            "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
            "params_dtype": {"_target_": f"torch.{model.dtype_name}", "_call_": False},
        }
    )
    config = {"model": provider}
    if model.has_tokenizer:
        config["tokenizer"] = {
            "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(model.place / _ITERATION / bridge.TOKENIZER),
        }
    config["checkpoint"] = {"save_optim": False, "save_rng": False, "fully_parallel_save": False}

    def write(create: Create, tensors: Iterable[tuple[str, Tensor]]) -> None:
        inside = _below(create, _ITERATION)
        _write(inside, iterations.RUN_CONFIG, _yaml(config))
        write_files(inside, bridge.TOKENIZER, model.small)
        write_distributed(inside, tensors, model.hf["num_hidden_layers"], prefix="")
        for place in (f"{_ITERATION}/{iterations.TRAIN_STATE}", f"latest_{iterations.TRAIN_STATE}"):
            with create(place) as stream:
                torch.save(_train_state(), stream)
        _write(create, iterations.TRACKER, b"0")

    return write


def _train_state() -> dict[str, Tensor]:
    """The state of a training that has not begun (megatron/bridge/training/state.py: TrainState)."""
    counts = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    flags = ("do_train", "do_valid", "do_test")
    return {
        **{name: torch.tensor(0, dtype=torch.int64) for name in counts},
        "floating_point_operations_so_far": torch.tensor(0, dtype=torch.float64),
        **{name: torch.tensor(False) for name in flags},
    }


def _megatron(model: Writing) -> Write:
    common = {"args": Namespace(**_arguments(model)), "checkpoint_version": 3.0, "iteration": 0}

    def write(create: Create, tensors: Iterable[tuple[str, Tensor]]) -> None:
        inside = _below(create, iterations.RELEASE)
        write_files(inside, megatron.HF_FILES, model.small)
        write_distributed(inside, tensors, model.hf["num_hidden_layers"], prefix="", common=common)
        _write(create, iterations.TRACKER, iterations.RELEASE.encode())

    return write


def _arguments(model: Writing) -> dict[str, Any]:
    """Megatron-LM's arguments of the model, and those that Megatron-Bridge asks for in such a checkpoint."""
    settings = model.settings
    rope = rope_settings(model.hf, "megatron")
    factor = rope.get("seq_len_interpolation_factor")
    same = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
    same += ("seq_length", "make_vocab_size_divisible_by", "init_method_std", "normalization", "add_bias_linear")
    same += ("add_qkv_bias", "qk_layernorm", "hidden_dropout", "attention_dropout", "position_embedding_type")
    same += ("rotary_base", "rotary_percent", "bf16", "fp16")
    tokenizer = str(model.place / iterations.RELEASE / megatron.HF_FILES) if model.has_tokenizer else None
    return {name: settings[name] for name in same} | {
        "group_query_attention": True,
        "max_position_embeddings": settings["seq_length"],
        "norm_epsilon": settings["layernorm_epsilon"],
        "layernorm_epsilon": settings["layernorm_epsilon"],
        "swiglu": True,
        "squared_relu": False,
        "use_rotary_position_embeddings": True,
        "add_position_embedding": True,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": int(factor) if factor and factor == int(factor) else factor,
        "use_rope_scaling": rope.get("rope_scaling", False),
        "rope_scaling_factor": rope.get("rope_scaling_factor", 8.0),
        "untie_embeddings_and_output_weights": not settings["share_embeddings_and_output_weights"],
        "padded_vocab_size": settings["vocab_size"],
        "params_dtype": model.dtype,
        "tokenizer_type": "HuggingFaceTokenizer" if tokenizer else None,
        "tokenizer_model": tokenizer,
        "apply_layernorm_1p": False,
        "num_experts": None,
        "multi_latent_attention": False,
        "heterogeneous_layers_config_path": None,
        "is_hybrid_model": False,
        "no_persist_layer_norm": False,
        "overlap_p2p_comm": False,
        "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None,
        "fp8_param_gather": False,
        "bias_swiglu_fusion": True,
        "bias_gelu_fusion": False,
        "init_method_xavier_uniform": False,
        "config_logger_dir": "",
        "cp_comm_type": ["p2p"],
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "ckpt_format": "torch_dist",
    }


def _below(create: Create, folder: str) -> Create:
    return lambda name: create(f"{folder}/{name}")


def _write(create: Create, name: str, content: bytes) -> None:
    with create(name) as stream:
        stream.write(content)


def _yaml(content: dict[str, Any]) -> bytes:
    return yaml.safe_dump(content, sort_keys=False).encode()
