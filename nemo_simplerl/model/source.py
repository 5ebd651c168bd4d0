"""Where a model's weights come from: Hugging Face folders, `.nemo` archives and training checkpoints behind one face.

Every tensor is read from disk when asked for, under its canonical Megatron name and full-sized.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch import Tensor

from nemo_simplerl.model import hf_map, nemo_config, old_layouts, safetensors_io, torch_dist
from nemo_simplerl.model.archive import Extent, list_files
from nemo_simplerl.model.families import check_hf_config, family_of
from nemo_simplerl.model.safetensors_io import Spec

Kind = Literal["hf", "nemo", "checkpoint"]
CONFIG_YAML = "model_config.yaml"
WEIGHTS = "model_weights"
HF_FILES = "hf"  # folder of an archive with config.json and the tokenizer
EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"  # canonical name of the value head of a critic, as of the output layer of an actor
NEMO_HEAD = "rm_head.weight"
NEMO_HEAD_BIAS = "rm_head.bias"
_TOKENIZER_SUFFIXES = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Source:
    """A model on disk. `small_files` are its config.json, generation_config.json and tokenizer files, by name."""

    kind: Kind
    path: Path
    hf: dict
    is_critic: bool
    specs: Mapping[str, Spec]  # canonical name -> shape and dtype on disk
    small_files: Mapping[str, Extent]
    read: Callable[[str], Tensor]
    tokenizer: str | None  # the folder or name that a `.nemo` gives for its tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, a value head aside."""
        return next(iter(self.specs.values())).dtype

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.specs.values())


def kind_of(path: str | Path) -> Kind:
    """What lies at `path`, by its looks. Raises ValueError where it looks like none of the kinds."""
    path = Path(path)
    if path.is_file() or (path / CONFIG_YAML).is_file():
        return "nemo"
    if (path / "config.json").is_file():
        return "hf"
    if (path / "manifest.json").is_file():
        return "checkpoint"
    raise ValueError(
        f"{path} is no model: neither a Hugging Face folder (config.json), nor a .nemo file or folder ({CONFIG_YAML}), "
        "nor a training checkpoint (manifest.json)."
    )


def open_source(path: str | Path, kind: Kind | None = None, *, critic: bool = False) -> Source:
    """The model at `path`; of a checkpoint, its actor or with `critic` its critic. `kind` None finds out.

    Raises one ValueError that lists every missing, unknown or misshapen tensor.
    """
    path = Path(path)
    kind = kind or kind_of(path)
    if kind == "hf":
        return _open_hf(path, critic)
    if kind == "checkpoint":
        inner = path / ("critic" if critic else "actor")
        if not inner.is_dir():
            raise ValueError(f"{path} is no training checkpoint of this kind: it holds no {inner.name} folder.")
        path = inner
    return _open_nemo(path, kind, critic)


def read_config(file: Extent, where: object) -> dict:
    """A supported config.json. Raises ValueError that lists what is not."""
    try:
        hf = json.loads(file.read())
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    check_hf_config(hf, where)
    return hf


def _open_hf(path: Path, critic: bool) -> Source:
    files = _top_files(path)
    if "config.json" not in files:
        raise ValueError(f"{path} holds no config.json; give a Hugging Face model folder.")
    hf = read_config(files["config.json"], path / "config.json")
    stored = safetensors_io.read_folder(files, path)
    is_critic = critic or hf_map.VALUE_HEAD in stored
    hf_map.check_names(stored, hf, path, critic=is_critic)
    heads = hf_map.heads_of(hf)
    names = hf_map.model_params(hf, critic=is_critic) + [HEAD] * (hf_map.VALUE_HEAD in stored)
    entries = {name: head_mapping(is_critic, name) for name in names}
    parts = {name: [stored[hf_name] for hf_name in entry.hf_names] for name, entry in entries.items()}
    wrong = []
    for name, entry in entries.items():
        shapes = [part.shape for part in parts[name]]
        expected = [spec.shape for spec in hf_specs(name, hf, parts[name][0].dtype, is_critic)]
        if shapes != expected or len({part.dtype for part in parts[name]}) > 1:
            wrong.append(f"{', '.join(entry.hf_names)}: {shapes}, by config.json {expected}")
    _refuse(path, wrong)
    specs = {name: Spec(name, full_shape(name, hf, is_critic), parts[name][0].dtype) for name in names}

    def read(name: str) -> Tensor:
        return hf_map.merge(entries[name].kind, [part.read() for part in parts[name]], heads)

    head, embedding = stored.get("lm_head.weight"), stored["model.embed_tokens.weight"]
    is_stored_twice = head is not None and hf.get("tie_word_embeddings", False) and not is_critic
    if is_stored_twice and not torch.equal(head.read(), embedding.read()):
        raise ValueError(
            f"{path}: lm_head.weight differs from model.embed_tokens.weight, to which config.json ties it; "
            "set tie_word_embeddings to false there, or remove the tensor."
        )
    return Source("hf", path, hf, is_critic, specs, _small(files), read, None)


def _open_nemo(path: Path, kind: Kind, critic: bool) -> Source:
    files = list_files(path)
    if CONFIG_YAML not in files:
        raise ValueError(f"{path} holds no {CONFIG_YAML}: it is no .nemo archive.")
    config = _read_yaml(files[CONFIG_YAML], f"{path}:{CONFIG_YAML}")
    tensors = old_layouts.tensors_of(files, config) or _torch_dist_tensors(files)
    is_critic = NEMO_HEAD in tensors
    if critic and not is_critic:
        raise ValueError(f"{path} is no critic: it holds no {NEMO_HEAD}.")
    small = {
        name.removeprefix(f"{HF_FILES}/"): file for name, file in files.items() if name.startswith(f"{HF_FILES}/")
    } or {name: file for name, file in files.items() if name.endswith("tokenizer.model") and "/" not in name}
    if "config.json" in small:
        hf = read_config(small["config.json"], f"{path}:{HF_FILES}/config.json")
    else:
        embedding = tensors.get(EMBEDDING)
        hf = nemo_config.hf_config(config, embedding.shape[0] if embedding else 0, f"{path}:{CONFIG_YAML}")
        check_hf_config(hf, f"{path}:{CONFIG_YAML}")
    names = hf_map.model_params(hf, critic=is_critic)
    if is_critic:
        tensors[HEAD] = tensors.pop(NEMO_HEAD)
        names.append(HEAD)
    _check_tensors(path, names, tensors, hf, is_critic)
    specs = {name: Spec(name, full_shape(name, hf, is_critic), tensors[name].dtype) for name in names}

    def read(name: str) -> Tensor:
        return tensors[name].read()[: specs[name].shape[0]]  # without the rows that pad a vocabulary

    tokenizer = config.get("tokenizer") or {}
    return Source(kind, path, hf, is_critic, specs, small, read, tokenizer.get("type") or tokenizer.get("model"))


@dataclass(frozen=True)
class Layer:
    """One layer of a stacked tensor."""

    stack: torch_dist.GlobalTensor
    row: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.stack.dtype

    def read(self) -> Tensor:
        return self.stack.read(self.row)


def _torch_dist_tensors(files: Mapping[str, Extent]) -> dict:
    """By canonical name, whether layers are stacked or have keys of their own."""
    tensors: dict = {}
    for key, tensor in torch_dist.read_index(files, WEIGHTS).items():
        name = old_layouts.without_prefix(key)
        if name.startswith("decoder.layers.") and not name.split(".")[2].isdigit():
            rest = name.removeprefix("decoder.layers.")
            for row in range(tensor.shape[0]):
                tensors[hf_map.canonical(f"decoder.layers.{row}.{rest}")] = Layer(tensor, row)
        else:
            tensors[hf_map.canonical(name)] = tensor
    return tensors


def _check_tensors(path: Path, names: list[str], tensors: dict, hf: dict, is_critic: bool) -> None:
    known = {*names, HEAD, NEMO_HEAD_BIAS}  # a critic may carry the output layer it does not use
    wrong = [f"{name} is missing" for name in names if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in known and not name.endswith("inv_freq")]
    for name in names:
        if name not in tensors:
            continue
        shape, expected = tensors[name].shape, full_shape(name, hf, is_critic)
        is_padded = head_mapping(is_critic, name).kind == "vocab" and shape[0] >= expected[0]
        if shape[1:] != expected[1:] or (shape[0] != expected[0] and not is_padded):
            wrong.append(f"{name} is {shape}, by its config {expected}")
    if not is_critic and hf.get("tie_word_embeddings", False) and HEAD in tensors:
        wrong.append(f"{HEAD} is there, but the embeddings are tied")
    if NEMO_HEAD_BIAS in tensors and bool(tensors[NEMO_HEAD_BIAS].read().any()):
        wrong.append(f"{NEMO_HEAD_BIAS} is not zero, and our value head has no bias")
    _refuse(path, wrong)


def _refuse(path: Path, wrong: list[str], shown: int = 12) -> None:
    if wrong:
        more = f"; and {len(wrong) - shown} more" if len(wrong) > shown else ""
        raise ValueError(f"{path}: weights and config do not belong together: {'; '.join(wrong[:shown])}{more}.")


def head_mapping(is_critic: bool, name: str) -> hf_map.Mapping:
    """`hf_map.mapping`, in which a critic's output layer is its value head."""
    return hf_map.Mapping((hf_map.VALUE_HEAD,), "plain", None) if is_critic and name == HEAD else hf_map.mapping(name)


def full_shape(name: str, hf: dict, is_critic: bool) -> tuple[int, ...]:
    """Of a canonical parameter, neither sharded nor padded."""
    return (1, hf["hidden_size"]) if is_critic and name == HEAD else hf_map.param_shape(name, hf)


def hf_specs(name: str, hf: dict, dtype: torch.dtype, is_critic: bool) -> list[Spec]:
    """What a canonical parameter becomes in a Hugging Face folder."""
    entry = head_mapping(is_critic, name)
    full = torch.empty(full_shape(name, hf, is_critic), dtype=dtype, device="meta")
    parts = hf_map.split(entry.kind, full, hf_map.heads_of(hf))
    return [Spec(hf_name, tuple(part.shape), dtype) for hf_name, part in zip(entry.hf_names, parts, strict=True)]


def hf_tensors(names: Iterable[str], read: Callable[[str], Tensor], hf: dict, is_critic: bool):
    """(Hugging Face name, tensor) of each canonical parameter in turn."""
    heads = hf_map.heads_of(hf)
    for name in names:
        entry = head_mapping(is_critic, name)
        yield from zip(entry.hf_names, hf_map.split(entry.kind, read(name), heads), strict=True)


def hf_config_of(hf: dict, is_critic: bool) -> dict:
    """config.json of a model: the class of transformers that loads a critic is another."""
    kind = "ForSequenceClassification" if is_critic else "ForCausalLM"
    hf = {key: value for key, value in hf.items() if key not in ("num_labels", "id2label", "label2id")}
    hf["architectures"] = [family_of(hf).architecture.replace("ForCausalLM", kind)]
    return hf | {"id2label": {"0": "value"}, "label2id": {"value": 0}} if is_critic else hf


def tokenizer_files(folder: Path) -> tuple[dict[str, Extent], dict]:
    """Tokenizer files of a Hugging Face folder by name, and its config.json (empty where it has none)."""
    files = _small(_top_files(folder))
    config = files.pop("config.json", None)
    files.pop("generation_config.json", None)
    return files, json.loads(config.read()) if config else {}


def _top_files(path: Path) -> dict[str, Extent]:
    """Files of a Hugging Face folder itself. Caches of a hub are folders of links; weights may be links into them."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; give a Hugging Face model folder.")
    return {entry.name: Extent(entry, 0, entry.stat().st_size) for entry in sorted(path.iterdir()) if entry.is_file()}


def _small(files: Mapping[str, Extent]) -> dict[str, Extent]:
    return {
        name: file
        for name, file in files.items()
        if name.endswith(_TOKENIZER_SUFFIXES) and name != safetensors_io.INDEX and not name.startswith("pytorch_model")
    }


def _read_yaml(file: Extent, where: str) -> dict:
    try:
        config = yaml.safe_load(file.read())
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is no YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where} holds no settings.")
    return config
