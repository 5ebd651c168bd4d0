"""`.nemo` archives, packed or unpacked: model_config.yaml, weights in several layouts, and what NeMo does not pack."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats import nemo_config, old_layouts, torch_dist
from nemo_simplerl.model.formats.archive import Extent, list_files
from nemo_simplerl.model.formats.safetensors_io import Spec
from nemo_simplerl.model.hf_map import EMBEDDING, OUTPUT_LAYER
from nemo_simplerl.model.readers.base import Reader, Source, dtype_problems, raise_if_any
from nemo_simplerl.model.readers.small_files import bounded, read_config, small_files, tokenizer_files

CONFIG_YAML = "model_config.yaml"
WEIGHTS = "model_weights"  # folder of an archive with the distributed checkpoint
HF_FILES = "hf"  # folder of an archive with config.json and the tokenizer
# NeMo-Aligner's names of a critic's value head.
VALUE_HEAD = "rm_head.weight"
VALUE_HEAD_BIAS = "rm_head.bias"
# Keys of a yaml's tokenizer that may name a file of the archive, and what transformers calls that file.
_TOKENIZER_KEYS = {"model": "tokenizer.model", "vocab_file": "vocab.json", "merge_file": "merges.txt"}


def is_nemo(path: Path) -> bool:
    """Whether `path` is a file, or a folder with a model_config.yaml."""
    return path.is_file() or (path / CONFIG_YAML).is_file()


def open_nemo(path: Path, critic: bool = False, tokenizer: Path | None = None, *, kind: str = "nemo") -> Source:
    """The model of a `.nemo`: a critic where it holds a value head, whatever `critic` asks for.

    tokenizer, and what is raised: see `open_source`. kind: what the source is to be called.
    """
    if path.is_dir() and not (path / CONFIG_YAML).is_file():
        raise ValueError(f"{path} is no unpacked .nemo: it holds no {CONFIG_YAML}.")
    files = list_files(path)
    if CONFIG_YAML not in files:
        raise ValueError(f"{path} holds no {CONFIG_YAML}: it is no .nemo archive.")
    where = f"{path}:{CONFIG_YAML}"
    config = nemo_config.parse_yaml(bounded(files[CONFIG_YAML], where).read(), where)
    tensors = _tensors_of(files, config)
    is_critic = VALUE_HEAD in tensors
    small = _small_files_of_archive(files, config)
    rows = tensors[EMBEDDING].shape[0] if EMBEDDING in tensors else 0
    inner = f"{path}:{HF_FILES}/config.json"

    def stated() -> str | None:
        return read_config(small["config.json"], inner)["model_type"] if "config.json" in small else None

    hf = nemo_config.hf_config(config, _vocab_size(tokenizer, rows), where, stated)
    if "config.json" in small:
        packed = read_config(small["config.json"], inner)
        _check_same_model(path, packed, hf, is_critic)
        hf = packed
    names = hf_map.model_params(hf, critic=is_critic)
    if is_critic:
        tensors[OUTPUT_LAYER] = tensors.pop(VALUE_HEAD)
        names.append(OUTPUT_LAYER)
    _check_tensors(path, names, tensors, hf, is_critic)
    specs = {name: Spec(name, hf_map.param_shape(name, hf, critic=is_critic), tensors[name].dtype) for name in names}

    def read(name: str) -> Tensor:
        return tensors[name].read()[: specs[name].shape[0]]  # without the rows that pad a vocabulary

    return Source(kind, path, hf, is_critic, specs, small, read, _tokenizer_name(config))


READER = Reader(f"a .nemo file or folder ({CONFIG_YAML})", is_nemo, open_nemo)


@dataclass(frozen=True)
class _StackedLayer:
    """One layer of a stacked tensor."""

    stack: torch_dist.GlobalTensor | old_layouts.ZarrArray
    row: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.stack.dtype

    def read(self) -> Tensor:
        return self.stack.read(self.row)


def _tensors_of(files: Mapping[str, Extent], config: dict) -> dict:
    """The archive's tensors by canonical name, whether layers are stacked into one tensor or have keys of their own."""
    if ranks := old_layouts.rank_files(files):
        return old_layouts.from_rank_files(ranks, config)
    tensors: dict = {}
    for key, tensor in (old_layouts.zarr_arrays(files) or torch_dist.read_index(files, WEIGHTS)).items():
        name = old_layouts.without_prefix(key)
        if "_extra_state" in name:
            continue
        if name.startswith("decoder.layers.") and not name.split(".")[2].isdecimal():
            rest = name.removeprefix("decoder.layers.")
            if 0 in tensor.shape or not tensor.shape:
                raise ValueError(f"{key} has shape {tensor.shape}: it holds no layers.")
            for row in range(tensor.shape[0]):
                tensors[hf_map.canonical(f"decoder.layers.{row}.{rest}")] = _StackedLayer(tensor, row)
        else:
            tensors[hf_map.canonical(name)] = tensor
    return tensors


def _check_same_model(path: Path, packed: dict, by_yaml: dict, is_critic: bool) -> None:
    """Raise ValueError where the two configs of an archive of ours differ: NeMo reads the yaml, we the config.json."""
    absent = {"rope_theta": 10000.0, "tie_word_embeddings": False}
    keys = [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "rms_norm_eps",
        *absent,
    ]
    said = [(key, packed.get(key) or absent.get(key), by_yaml[key]) for key in keys]
    said.append(("the attention", hf_map.heads_of(packed), hf_map.heads_of(by_yaml)))
    wrong = [
        f"{what} is {one!r} or {other!r}"
        for what, one, other in said
        if one != other and not (is_critic and what == "tie_word_embeddings")
    ]
    if wrong:
        raise ValueError(f"{path}: {HF_FILES}/config.json and {CONFIG_YAML} differ: {'; '.join(wrong)}.")


def _vocab_size(tokenizer: Path | None, rows: int) -> int:
    """How many rows of the embeddings are tokens. NeMo pads a vocabulary and may not note its size."""
    _, config = tokenizer_files(tokenizer) if tokenizer else ({}, {})
    given = config.get("vocab_size")
    return given if isinstance(given, int) and 0 < given < rows else rows


def _check_tensors(path: Path, names: list[str], tensors: dict, hf: dict, is_critic: bool) -> None:
    """Raise one ValueError that lists the tensors that are missing, unknown, misshapen, quantized or inconsistent."""
    known = {*names, OUTPUT_LAYER, VALUE_HEAD_BIAS}  # a critic may carry the output layer it does not use
    wrong = [f"{name} is missing" for name in names if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in known and not name.endswith("inv_freq")]
    for name in names:
        if name not in tensors:
            continue
        shape, expected = tensors[name].shape, hf_map.param_shape(name, hf, critic=is_critic)
        is_padded = hf_map.mapping(name, critic=is_critic).kind == "vocab" and shape[:1] >= expected[:1]
        if shape[1:] != expected[1:] or (shape[:1] != expected[:1] and not is_padded):
            wrong.append(f"{name} is {shape}, by its config {expected}")
        wrong += dtype_problems(name, tensors[name].dtype)
    raise_if_any(path, wrong)
    is_tied = not is_critic and hf.get("tie_word_embeddings", False)
    # The last of several pipeline stages stores its copy of tied embeddings.
    if is_tied and OUTPUT_LAYER in tensors and not torch.equal(tensors[OUTPUT_LAYER].read(), tensors[EMBEDDING].read()):
        wrong.append(f"{OUTPUT_LAYER} differs from the embeddings, to which it is tied")
    if VALUE_HEAD_BIAS in tensors and bool(tensors[VALUE_HEAD_BIAS].read().any()):
        wrong.append(f"{VALUE_HEAD_BIAS} is not zero, and our value head has no bias")
    raise_if_any(path, wrong)


def _small_files_of_archive(files: Mapping[str, Extent], config: dict) -> dict[str, Extent]:
    """What the archive packs beside its weights: the files below hf/, or the tokenizer files that its yaml names."""
    inside = f"{HF_FILES}/"
    packed = {name.removeprefix(inside): file for name, file in files.items() if name.startswith(inside)}
    if found := small_files(packed):
        return found
    tokenizer = config.get("tokenizer")
    named = {plain: tokenizer.get(key) for key, plain in _TOKENIZER_KEYS.items()} if isinstance(tokenizer, dict) else {}
    # NeMo's word for a file of the archive is nemo:NAME.
    own = {plain: value[5:] for plain, value in named.items() if isinstance(value, str) and value.startswith("nemo:")}
    return small_files({plain: files[name] for plain, name in own.items() if name in files})


def _tokenizer_name(config: dict) -> str | None:
    """The folder or hub name that a yaml gives for its tokenizer."""
    tokenizer = config.get("tokenizer")
    name = (tokenizer.get("type") or tokenizer.get("model")) if isinstance(tokenizer, dict) else None
    return name if isinstance(name, str) else None
