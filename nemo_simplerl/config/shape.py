"""Reads the sizes of a model that parallel layouts and length limits depend on, without loading it."""

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from nemo_simplerl.config.families import FAMILIES, Family, family_of_nemo, window_of, window_of_megatron
from nemo_simplerl.config.forms.folder import FORMS, form_of, named_family
from nemo_simplerl.config.forms.gguf import is_gguf, read_header
from nemo_simplerl.config.forms.gguf_config import hf_config
from nemo_simplerl.config.forms.iterations import embedding_rows
from nemo_simplerl.config.schema import CreateConfig, CriticConfig, ModelConfig
from nemo_simplerl.user_files import read_text, refuse_pointer

_HF_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
_YAML = "model_config.yaml"
_PACKED = "hf/config.json"  # model/source.py reads it too
_NEMO_KEYS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "ffn_hidden_size",
    "vocab_size": "override_vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
_MEGATRON_KEYS = {name: name for name in _HF_KEYS if name not in ("vocab_size", "max_position_embeddings")}
_MEGATRON_KEYS["max_position_embeddings"] = "seq_length"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a model and its family."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    tied: bool  # input and output embeddings are one matrix
    model_type: str
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    sliding_window: int | None = None  # tokens that one attends to; None: all before it

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that is trained: within a window, full attention computes the same."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]


def read_shape(model: ModelConfig) -> ModelShape:
    """Shape of the folder `model.path`, or of `model.create` where there is no such folder yet.

    Raises ValueError when there is neither, when the two contradict each other, and for an unsupported model.
    """
    path = Path(model.path)
    shape = _shape_at(path, "model.path", "actor")
    if shape is not None:
        if model.create is not None and (path / "config.json").is_file():
            _refuse_contradiction(path / "config.json", shape, model.create)
        return shape
    if model.create is None:
        raise ValueError(
            f"model.path={model.path!r} holds no config.json. Give a Hugging Face model folder on disk "
            "(`hf download Qwen/Qwen2.5-Math-7B --local-dir FOLDER` writes one), a .nemo or GGUF file, a NeMo 2 "
            "folder, a Megatron-Bridge or Megatron-LM checkpoint (torch_dist), a training checkpoint "
            "(checkpoints/step_N), or fill model.create to start from random weights (experiment=quickstart does)."
        )
    return _shape_of_create(model.create)


def read_critic_shape(critic: CriticConfig) -> ModelShape | None:
    """Shape of the model at `critic.path`; None where the critic starts from the actor's, or nothing is there.

    Raises ValueError for an unsupported model.
    """
    return None if critic.path is None else _shape_at(Path(critic.path), "critic.path", "critic")


def _shape_at(path: Path, key: str, role: str) -> ModelShape | None:
    """Shape of the model at `path`, of a checkpoint that of its `role`; None where there is no model.

    key: of the configuration, for the message.
    """
    if is_gguf(path):
        return _shape_of_gguf(path, key)
    if path.is_file() or any((folder / _YAML).is_file() for folder in (path, path / role)):
        return _shape_of_nemo(path, key, role)
    if form := form_of(path):
        return _shape_of_folder(path, form, key)
    return _shape_of_file(path / "config.json", key) if (path / "config.json").is_file() else None


def _shape_of_gguf(path: Path, key: str) -> ModelShape:
    """Shape of a GGUF file, whose quantizations are looked up too. model/source.py checks the rest."""
    from nemo_simplerl.config.forms.gguf_types import quantizations  # loads numpy

    try:
        header = read_header(path)
        quantizations(header)
        return shape_of_hf(hf_config(header))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _shape_of_nemo(path: Path, key: str, role: str) -> ModelShape:
    """Shape of a `.nemo` file or folder, or of a role of a checkpoint. model/source.py checks the rest."""
    found = next((file for file in (path / _YAML, path / role / _YAML) if file.is_file()), None)
    try:
        with open(found or path, "rb") as stream:
            refuse_pointer(stream.read(64), f"{key}: {found or path}")
        config = yaml.safe_load(found.read_bytes() if found else _read_in_tar(path, _YAML))
        values = {ours: config[theirs] for ours, theirs in _NEMO_KEYS.items()}
    except (OSError, tarfile.TarError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"{key}: {path} has no readable {_YAML} ({type(error).__name__}: {error}); "
            "where NeMo wrote it, turn it into a Hugging Face folder: simplerl convert --from nemo --to hf."
        ) from error
    try:
        family = family_of_nemo(config, lambda: _packed_model_type(path, role))
    except ValueError as error:
        raise ValueError(f"{key}: {path}:{_YAML}: {error}.") from error
    return _shape_of_megatron(values, config, family)


def _shape_of_folder(path: Path, form: str, key: str) -> ModelShape:
    """Shape of a folder of NeMo 2, Megatron-Bridge or Megatron-LM. model/source.py checks the rest."""
    try:
        described = FORMS[form][1](path)
        settings = described.settings
        values: dict[str, Any] = {ours: settings.get(theirs) for ours, theirs in _MEGATRON_KEYS.items()}
        values["vocab_size"] = settings.get("vocab_size") or embedding_rows(described.weights)
        if bad := [name for name, value in values.items() if type(value) is not int or value < 1]:
            raise ValueError(f"{described.where} needs a positive {' and '.join(bad)}")
        traits = {"qkv_bias": settings.get("add_qkv_bias"), "qk_layernorm": settings.get("qk_layernorm")}
        family = family_of_nemo(traits, lambda: named_family(described))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return _shape_of_megatron(values, settings, family)


def _shape_of_megatron(sizes: dict[str, Any], settings: dict[str, Any], family: Family) -> ModelShape:
    """The shape with these sizes; the rest is from settings under Megatron's names, which every form of it uses."""
    return ModelShape(
        **sizes,
        num_query_groups=settings.get("num_query_groups") or settings["num_attention_heads"],
        tied=bool(settings.get("share_embeddings_and_output_weights", True)),
        model_type=family.model_type,
        head_dim=settings.get("kv_channels"),
        sliding_window=window_of_megatron(settings) if family.window else None,
    )


def _packed_model_type(path: Path, role: str) -> str | None:
    """The model_type in the config.json that our own archives carry; None in one that carries none."""
    found = next((file for file in (path / _PACKED, path / role / _PACKED) if file.is_file()), None)
    try:
        content = found.read_bytes() if found else _read_in_tar(path, _PACKED)
        return json.loads(content).get("model_type")
    except (OSError, tarfile.TarError, KeyError, ValueError, AttributeError):
        return None


def _read_in_tar(path: Path, name: str) -> bytes:
    """A small file of a tar archive. Raises KeyError where it is missing."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if PurePosixPath(member.name) == PurePosixPath(name) and member.isreg() and member.size < 1 << 20:
                file = tar.extractfile(member)
                assert file is not None
                return file.read()
    raise KeyError(name)


def decides_shape(key: str) -> bool:
    """Whether the shape depends on the configuration's value at a dotted key."""
    return key in ("model", "model.path") or key.startswith("model.create")


def decides_critic_shape(key: str) -> bool:
    """Whether the shape of a critic of its own depends on the configuration's value at a dotted key."""
    return key in ("critic", "critic.path")


def _shape_of_create(create: CreateConfig) -> ModelShape:
    return ModelShape(
        num_layers=create.num_layers,
        hidden_size=create.hidden_size,
        num_attention_heads=create.num_attention_heads,
        num_query_groups=create.num_query_groups,
        ffn_hidden_size=create.ffn_hidden_size,
        vocab_size=create.vocab_size,
        max_position_embeddings=create.max_position_embeddings,
        tied=create.share_embeddings_and_output_weights,
        model_type="qwen2",
    )


def _shape_of_file(file: Path, key: str) -> ModelShape:
    try:
        hf = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {file} is not readable JSON ({error}); fetch the model again.") from error
    if not isinstance(hf, dict) or hf.get("model_type") not in FAMILIES:
        found = hf.get("model_type") if isinstance(hf, dict) else hf
        raise ValueError(f"{key}: {file} has model_type {found!r}; supported: {', '.join(FAMILIES)}.")
    sizes = [*_HF_KEYS.values(), *(["sliding_window"] if hf.get("sliding_window") is not None else [])]
    bad = [name for name in sizes if type(hf.get(name)) is not int or hf[name] < 1]
    if bad:
        raise ValueError(f"{key}: {file} needs a positive {' and '.join(bad)}; fetch the model again.")
    return shape_of_hf(hf)


def shape_of_hf(hf: Mapping[str, Any]) -> ModelShape:
    """The shape that the keys of a config.json give, which are there and positive."""
    return ModelShape(
        **{ours: hf[theirs] for ours, theirs in _HF_KEYS.items()},
        num_query_groups=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        tied=bool(hf.get("tie_word_embeddings", False)),
        model_type=hf["model_type"],
        head_dim=hf.get("head_dim"),
        sliding_window=window_of(hf),
    )


def _refuse_contradiction(file: Path, found: ModelShape, create: CreateConfig) -> None:
    """An existing folder wins over model.create, but a run that asks for other sizes must not start from it.

    The vocabulary is left out: the tokenizer learnt from little text may come out smaller than asked.
    """
    asked = _shape_of_create(create)
    names = (*(name for name in _HF_KEYS if name != "vocab_size"), "num_query_groups")
    differ = [name for name in names if getattr(asked, name) != getattr(found, name)]
    if differ:
        asks = ", ".join(f"model.create.{name}={getattr(asked, name)}" for name in differ)
        has = ", ".join(f"{getattr(found, name)}" for name in differ)
        raise ValueError(
            f"{asks} asked, but {file} was made with {has}. Remove that folder, "
            "choose another trainer.run_dir, or ask for the sizes it has."
        )
