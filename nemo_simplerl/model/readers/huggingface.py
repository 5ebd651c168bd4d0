"""Hugging Face folders: config.json and *.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nemo_simplerl.config.families import family_of
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats import safetensors_io
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.safetensors_io import Spec
from nemo_simplerl.model.hf_map import OUTPUT_LAYER
from nemo_simplerl.model.readers.base import Reader, Source, dtype_problems, raise_if_any
from nemo_simplerl.model.readers.small_files import read_config, small_files, top_files


def is_hf_folder(path: Path) -> bool:
    """Whether `path` is a folder with a config.json."""
    return (path / "config.json").is_file()


def open_hf_folder(path: Path, critic: bool = False, tokenizer: Path | None = None) -> Source:
    """The model of a Hugging Face folder: a critic where it holds a value head.

    `critic` and `tokenizer` change nothing. Raises ValueError for a config that is not supported, and for tensors that
    are missing, unknown, misshapen or quantized.
    """
    files = top_files(path)
    if "config.json" not in files:
        raise ValueError(f"{path} holds no config.json; give a Hugging Face model folder.")
    hf = read_config(files["config.json"], path / "config.json")
    return source_of_tensors("hf", path, hf, safetensors_io.read_folder(files, path), small_files(files))


READER = Reader("a Hugging Face folder (config.json)", is_hf_folder, open_hf_folder)


class NamedTensor(Protocol):
    """A tensor on disk, as every form that has Hugging Face's names gives one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> Tensor: ...


def source_of_tensors(
    kind: str,
    path: Path,
    hf: dict,
    stored: Mapping[str, NamedTensor],
    small: Mapping[str, bytes | Extent],
    tokenizer_problem: str | None = None,
) -> Source:
    """The model with these tensors by their Hugging Face names: a critic where one is a value head.

    For the other arguments see Source. Raises ValueError for tensors that are missing, unknown, misshapen or quantized,
    and where tied embeddings are stored twice and differ.
    """
    is_critic = hf_map.VALUE_HEAD in stored
    hf_map.check_names(stored, hf, path, critic=is_critic)
    names = hf_map.model_params(hf, critic=is_critic) + [OUTPUT_LAYER] * is_critic
    entries = {name: hf_map.mapping(name, critic=is_critic) for name in names}
    parts = {name: [stored[hf_name] for hf_name in entry.hf_names] for name, entry in entries.items()}
    _check_tensors(path, parts, hf, is_critic)
    specs = {name: Spec(name, hf_map.param_shape(name, hf, critic=is_critic), parts[name][0].dtype) for name in names}
    heads = hf_map.heads_of(hf)

    def read(name: str) -> Tensor:
        return hf_map.merge(entries[name].kind, [part.read() for part in parts[name]], heads)

    head, embedding = stored.get("lm_head.weight"), stored["model.embed_tokens.weight"]
    is_stored_twice = head is not None and hf.get("tie_word_embeddings", False) and not is_critic
    if is_stored_twice and not torch.equal(head.read(), embedding.read()):
        raise ValueError(
            f"{path}: lm_head.weight differs from model.embed_tokens.weight, to which config.json ties it; "
            "set tie_word_embeddings to false there, or remove the tensor."
        )
    return Source(kind, path, hf, is_critic, specs, small, read, None, tokenizer_problem)


def _check_tensors(path: Path, parts: dict[str, list[NamedTensor]], hf: dict, is_critic: bool) -> None:
    """Raise ValueError where tensors do not have the shapes of config.json, or dtypes of one parameter differ."""
    problems = []
    for name, stored in parts.items():
        hf_names = hf_map.mapping(name, critic=is_critic).hf_names
        shapes = [part.shape for part in stored]
        expected = [spec.shape for spec in hf_specs(name, hf, stored[0].dtype, critic=is_critic)]
        if shapes != expected or len({part.dtype for part in stored}) > 1:
            problems.append(f"{', '.join(hf_names)}: {shapes}, by config.json {expected}")
        problems += dtype_problems(hf_names[0], stored[0].dtype)
    raise_if_any(path, problems)


def hf_specs(name: str, hf: dict, dtype: torch.dtype, *, critic: bool = False) -> list[Spec]:
    """Names, shapes and dtype of the tensors that a canonical parameter becomes in a Hugging Face folder."""
    entry = hf_map.mapping(name, critic=critic)
    shapes = hf_map.split_shapes(entry.kind, hf_map.param_shape(name, hf, critic=critic), hf_map.heads_of(hf))
    return [Spec(hf_name, shape, dtype) for hf_name, shape in zip(entry.hf_names, shapes, strict=True)]


def config_to_write(hf: dict, *, critic: bool) -> dict:
    """The config.json of a model to be written: another class of transformers loads a critic than an actor."""
    kind = "ForSequenceClassification" if critic else "ForCausalLM"
    hf = {key: value for key, value in hf.items() if key not in ("num_labels", "id2label", "label2id")}
    hf["architectures"] = [family_of(hf).architecture.replace("ForCausalLM", kind)]
    return hf | {"id2label": {"0": "value"}, "label2id": {"value": 0}} if critic else hf
