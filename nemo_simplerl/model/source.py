"""Where a model's weights come from: Hugging Face folders, `.nemo` archives and training checkpoints behind one face.

Every tensor is read from disk when asked for, under its canonical Megatron name and full-sized.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import xxhash
from torch import Tensor

from nemo_simplerl.config.families import check_hf_config, family_of
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats import nemo_config, old_layouts, safetensors_io, torch_dist
from nemo_simplerl.model.formats.archive import Extent, list_files
from nemo_simplerl.model.formats.safetensors_io import Spec

Kind = Literal["hf", "nemo", "checkpoint"]
CONFIG_YAML = "model_config.yaml"
WEIGHTS = "model_weights"
HF_FILES = "hf"  # folder of an archive with config.json and the tokenizer
EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"  # canonical name of the value head of a critic, as of the output layer of an actor
NEMO_HEAD = "rm_head.weight"
NEMO_HEAD_BIAS = "rm_head.bias"
_MAX_SMALL = 256 << 20
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
# Keys of a yaml's tokenizer that may name a file of the archive, and what transformers calls that file.
_TOKENIZER_KEYS = {"model": "tokenizer.model", "vocab_file": "vocab.json", "merge_file": "merges.txt"}


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


def fingerprint(source: Source) -> str:
    """Of the first layer's attention weights: some megabytes that any training changes."""
    hasher = xxhash.xxh3_64()
    for name in sorted(source.specs):
        if name.startswith("decoder.layers.0.self_attention.") and len(source.specs[name].shape) > 1:
            hasher.update(source.read(name).contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()


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


def open_source(
    path: str | Path, kind: Kind | None = None, *, critic: bool = False, tokenizer: Path | None = None
) -> Source:
    """The model at `path`; of a checkpoint, its actor or with `critic` its critic. `kind` None finds out.

    critic: the model must have a value head. tokenizer: a folder whose config.json says how many rows of a `.nemo`'s
    embeddings are tokens, where the archive itself does not.
    Raises one ValueError that lists every missing, unknown or misshapen tensor.
    """
    path = Path(path)
    kind = kind or kind_of(path)
    if kind == "hf":
        source = _open_hf(path)
    elif kind == "nemo":
        source = _open_nemo(path, kind, tokenizer)
    else:
        inner = path / ("critic" if critic else "actor")
        if not (path / "manifest.json").is_file() or not inner.is_dir():
            raise ValueError(
                f"{path} is no complete training checkpoint: it lacks manifest.json or {inner.name}/; "
                "give a run's checkpoints/step_NNNNNN."
            )
        source = _open_nemo(inner, kind, tokenizer)
    if critic and not source.is_critic:
        raise ValueError(f"{source.path} is no critic: it holds no value head ({hf_map.VALUE_HEAD}, {NEMO_HEAD}).")
    return source


def read_config(file: Extent, where: object) -> dict:
    """A supported config.json. Raises ValueError that lists what is not."""
    hf = _json(file, where)
    check_hf_config(hf, where)
    return hf


def _open_hf(path: Path) -> Source:
    files = _top_files(path)
    if "config.json" not in files:
        raise ValueError(f"{path} holds no config.json; give a Hugging Face model folder.")
    hf = read_config(files["config.json"], path / "config.json")
    stored = safetensors_io.read_folder(files, path)
    is_critic = hf_map.VALUE_HEAD in stored
    hf_map.check_names(stored, hf, path, critic=is_critic)
    heads = hf_map.heads_of(hf)
    names = hf_map.model_params(hf, critic=is_critic) + [HEAD] * is_critic
    entries = {name: head_mapping(is_critic, name) for name in names}
    parts = {name: [stored[hf_name] for hf_name in entry.hf_names] for name, entry in entries.items()}
    wrong = []
    for name, entry in entries.items():
        shapes = [part.shape for part in parts[name]]
        expected = [spec.shape for spec in hf_specs(name, hf, parts[name][0].dtype, is_critic)]
        if shapes != expected or len({part.dtype for part in parts[name]}) > 1:
            wrong.append(f"{', '.join(entry.hf_names)}: {shapes}, by config.json {expected}")
        wrong += _not_floating(entry.hf_names[0], parts[name][0].dtype)
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


def _open_nemo(path: Path, kind: Kind, tokenizer: Path | None) -> Source:
    if path.is_dir() and not (path / CONFIG_YAML).is_file():
        raise ValueError(f"{path} is no unpacked .nemo: it holds no {CONFIG_YAML}.")
    files = list_files(path)
    if CONFIG_YAML not in files:
        raise ValueError(f"{path} holds no {CONFIG_YAML}: it is no .nemo archive.")
    where = f"{path}:{CONFIG_YAML}"
    config = nemo_config.parse_yaml(_bounded(files[CONFIG_YAML], where).read(), where)
    tensors = _tensors_of(files, config)
    is_critic = NEMO_HEAD in tensors
    small = _small_of_nemo(files, config)
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
        tensors[HEAD] = tensors.pop(NEMO_HEAD)
        names.append(HEAD)
    _check_tensors(path, names, tensors, hf, is_critic)
    specs = {name: Spec(name, full_shape(name, hf, is_critic), tensors[name].dtype) for name in names}

    def read(name: str) -> Tensor:
        return tensors[name].read()[: specs[name].shape[0]]  # without the rows that pad a vocabulary

    return Source(kind, path, hf, is_critic, specs, small, read, _tokenizer_name(config))


@dataclass(frozen=True)
class Layer:
    """One layer of a stacked tensor."""

    stack: torch_dist.GlobalTensor | old_layouts.Array
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
    """An archive's tensors by canonical name, whether layers are stacked or have keys of their own."""
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
                tensors[hf_map.canonical(f"decoder.layers.{row}.{rest}")] = Layer(tensor, row)
        else:
            tensors[hf_map.canonical(name)] = tensor
    return tensors


def _check_same_model(path: Path, packed: dict, by_yaml: dict, is_critic: bool) -> None:
    """An archive of ours describes its model twice: NeMo reads the yaml, we the config.json."""
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
    """Rows of the embeddings that are tokens. NeMo pads a vocabulary and may not note its size."""
    _, config = tokenizer_files(tokenizer) if tokenizer else ({}, {})
    given = config.get("vocab_size")
    return given if isinstance(given, int) and 0 < given < rows else rows


def _check_tensors(path: Path, names: list[str], tensors: dict, hf: dict, is_critic: bool) -> None:
    known = {*names, HEAD, NEMO_HEAD_BIAS}  # a critic may carry the output layer it does not use
    wrong = [f"{name} is missing" for name in names if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in known and not name.endswith("inv_freq")]
    for name in names:
        if name not in tensors:
            continue
        shape, expected = tensors[name].shape, full_shape(name, hf, is_critic)
        is_padded = head_mapping(is_critic, name).kind == "vocab" and shape[:1] >= expected[:1]
        if shape[1:] != expected[1:] or (shape[:1] != expected[:1] and not is_padded):
            wrong.append(f"{name} is {shape}, by its config {expected}")
        wrong += _not_floating(name, tensors[name].dtype)
    _refuse(path, wrong)
    is_tied = not is_critic and hf.get("tie_word_embeddings", False)
    # The last of several pipeline stages stores its copy of tied embeddings.
    if is_tied and HEAD in tensors and not torch.equal(tensors[HEAD].read(), tensors[EMBEDDING].read()):
        wrong.append(f"{HEAD} differs from the embeddings, to which it is tied")
    if NEMO_HEAD_BIAS in tensors and bool(tensors[NEMO_HEAD_BIAS].read().any()):
        wrong.append(f"{NEMO_HEAD_BIAS} is not zero, and our value head has no bias")
    _refuse(path, wrong)


def _not_floating(name: str, dtype: torch.dtype) -> list[str]:
    return [] if dtype.is_floating_point else [f"{name} is {dtype}: quantized weights are not supported"]


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
    shapes = hf_map.split_shapes(entry.kind, full_shape(name, hf, is_critic), hf_map.heads_of(hf))
    return [Spec(hf_name, shape, dtype) for hf_name, shape in zip(entry.hf_names, shapes, strict=True)]


def hf_tensors(tensors: Iterable[tuple[str, Tensor]], hf: dict, is_critic: bool) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of each canonical parameter in turn."""
    heads = hf_map.heads_of(hf)
    for name, tensor in tensors:
        entry = head_mapping(is_critic, name)
        yield from zip(entry.hf_names, hf_map.split(entry.kind, tensor, heads), strict=True)


def hf_config_of(hf: dict, is_critic: bool) -> dict:
    """config.json of a model: the class of transformers that loads a critic is another."""
    kind = "ForSequenceClassification" if is_critic else "ForCausalLM"
    hf = {key: value for key, value in hf.items() if key not in ("num_labels", "id2label", "label2id")}
    hf["architectures"] = [family_of(hf).architecture.replace("ForCausalLM", kind)]
    return hf | {"id2label": {"0": "value"}, "label2id": {"value": 0}} if is_critic else hf


def tokenizer_files(folder: Path) -> tuple[dict[str, Extent], dict]:
    """Tokenizer files of a Hugging Face folder by name, and its config.json (empty where it has none)."""
    files = _small(_top_files(folder))
    config = _json(files["config.json"], folder / "config.json") if "config.json" in files else {}
    return {name: file for name, file in files.items() if name in _TOKENIZER_FILES}, config


def _top_files(path: Path) -> dict[str, Extent]:
    """Files of a Hugging Face folder itself. Caches of a hub are folders of links; weights may be links into them."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; give a Hugging Face model folder.")
    return {entry.name: Extent(entry, 0, entry.stat().st_size) for entry in sorted(path.iterdir()) if entry.is_file()}


def _small(files: Mapping[str, Extent]) -> dict[str, Extent]:
    """Those that go with the weights; not code, adapters and whatever else lies there."""
    names = ("config.json", "generation_config.json", *_TOKENIZER_FILES)
    return {name: _bounded(files[name], name) for name in names if name in files}


def _small_of_nemo(files: Mapping[str, Extent], config: dict) -> dict[str, Extent]:
    inside = f"{HF_FILES}/"
    if packed := _small({name.removeprefix(inside): file for name, file in files.items() if name.startswith(inside)}):
        return packed
    tokenizer = config.get("tokenizer")
    named = {plain: tokenizer.get(key) for key, plain in _TOKENIZER_KEYS.items()} if isinstance(tokenizer, dict) else {}
    # NeMo's word for a file of the archive is nemo:NAME.
    own = {plain: value[5:] for plain, value in named.items() if isinstance(value, str) and value.startswith("nemo:")}
    return _small({plain: files[name] for plain, name in own.items() if name in files})


def _tokenizer_name(config: dict) -> str | None:
    """The folder or hub name that a yaml gives for its tokenizer."""
    tokenizer = config.get("tokenizer")
    name = (tokenizer.get("type") or tokenizer.get("model")) if isinstance(tokenizer, dict) else None
    return name if isinstance(name, str) else None


def _bounded(file: Extent, where: object) -> Extent:
    """Raises ValueError for a file that is too large to be read whole."""
    if file.size > _MAX_SMALL:
        raise ValueError(f"{where} has {file.size} bytes, which no config and no tokenizer needs.")
    return file


def _json(file: Extent, where: object) -> dict:
    """Raises ValueError for anything but an object."""
    try:
        content = json.loads(_bounded(file, where).read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds no JSON object; fetch the model again.")
    return content
