"""Checkpoints of Megatron-Bridge: an iteration with `run_config.yaml`, and the tokenizer's files beside it."""

from pathlib import Path
from typing import Any

from nemo_simplerl.config.forms.description import Description, plain, read_yaml
from nemo_simplerl.config.forms.iterations import (
    RELEASE,
    RUN_CONFIG,
    TRAIN_STATE,
    check_torch_dist,
    is_iteration,
    iteration_of,
)

TOKENIZER = "tokenizer"
PROVIDER = "megatron.bridge.models.gpt_provider.GPTModelProvider"
# Its defaults where they decide a model. The classes of families, up to Megatron-Bridge 0.3, have others.
_DEFAULTS = {
    "normalization": "LayerNorm",
    "position_embedding_type": "learned_absolute",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "seq_length": 1024,
    "share_embeddings_and_output_weights": True,
    "layernorm_epsilon": 1e-5,
}


def is_bridge(path: Path) -> bool:
    """Whether `path` is a checkpoint of Megatron-Bridge, or a folder of them, or a part of one."""
    folders = [path] if is_iteration(path) else [*path.glob("iter_*"), path / RELEASE]
    return any((folder / name).is_file() for folder in folders for name in (RUN_CONFIG, TRAIN_STATE))


def describe(path: Path) -> Description:
    """The model of a checkpoint. Raises ValueError that says what it lacks, or what of it is not supported."""
    folder = iteration_of(path)
    where = folder / RUN_CONFIG
    if not where.is_file():
        raise ValueError(f"{folder} lacks {RUN_CONFIG}; copy the whole iteration.")
    check_torch_dist(folder)
    config = read_yaml(where)
    model, tokenizer = config.get("model"), config.get("tokenizer")
    if not isinstance(model, dict):
        raise ValueError(f"{where} describes no model: it has no section model.")
    if "_builder_" in model or not isinstance(model.get("_target_"), str):
        raise ValueError(f"{where}: model has no _target_: only models of a GPTModelProvider are read.")
    class_name, generic = str(plain(model)), PROVIDER.rpartition(".")[2]
    settings = {str(key): plain(value) for key, value in model.items() if key != "_target_"}
    name = _tokenizer_name(tokenizer)
    inner = folder / TOKENIZER
    return Description(
        form="bridge",
        weights=folder,
        where=where,
        settings=(_DEFAULTS if class_name == generic else {}) | settings,
        class_name=str(settings.get("hf_model_id") or "") if class_name == generic else class_name,
        tokenizer=name,
        tokenizer_folder=inner if inner.is_dir() else None,
    )


def _tokenizer_name(tokenizer: Any) -> str | None:
    """The folder or hub name in the section tokenizer: a text, or a `pathlib.Path` as YAML spells one."""
    value = tokenizer.get("tokenizer_model") if isinstance(tokenizer, dict) else None
    if isinstance(value, dict):
        value = "/".join(map(str, value.get("_args_") or ()))
    return value if isinstance(value, str) and value not in ("", ".") else None
