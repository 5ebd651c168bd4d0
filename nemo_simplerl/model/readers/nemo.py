"""`.nemo` archives, packed or unpacked: model_config.yaml, weights in several layouts, and what NeMo does not pack."""

from collections.abc import Mapping
from pathlib import Path

from nemo_simplerl.config.forms.gguf import is_gguf
from nemo_simplerl.config.hf_config import DEFAULT_THETA
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats import nemo_config, old_layouts, torch_dist
from nemo_simplerl.model.formats.archive import Extent, list_files
from nemo_simplerl.model.hf_map import EMBEDDING, OUTPUT_LAYER
from nemo_simplerl.model.readers import distributed
from nemo_simplerl.model.readers.base import Reader, Source, raise_if_any
from nemo_simplerl.model.readers.small_files import bounded, read_config, small_files

CONFIG_YAML = "model_config.yaml"
WEIGHTS = "model_weights"  # folder of an archive with the distributed checkpoint
HF_FILES = "hf"  # folder of an archive with config.json and the tokenizer
# NeMo-Aligner's names of a critic's value head.
VALUE_HEAD = "rm_head.weight"
VALUE_HEAD_BIAS = "rm_head.bias"
# Keys of a yaml's tokenizer that may name a file of the archive, and what transformers calls that file.
_TOKENIZER_KEYS = {"model": "tokenizer.model", "vocab_file": "vocab.json", "merge_file": "merges.txt"}


def is_nemo(path: Path) -> bool:
    """Whether `path` is a file, but for one of GGUF, or a folder with a model_config.yaml."""
    return (path.is_file() and not is_gguf(path)) or (path / CONFIG_YAML).is_file()


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
    small = _small_files_of_archive(files, config)
    rows = tensors[EMBEDDING].shape[0] if EMBEDDING in tensors else 0
    inner = f"{path}:{HF_FILES}/config.json"

    def stated() -> str | None:
        return read_config(small["config.json"], inner)["model_type"] if "config.json" in small else None

    hf = nemo_config.hf_config(config, distributed.vocab_size(tokenizer, rows), where, stated)
    is_critic = VALUE_HEAD in tensors
    if "config.json" in small:
        packed = read_config(small["config.json"], inner)
        _check_same_model(path, packed, hf, is_critic)
        hf = packed
    if is_critic:
        tensors[OUTPUT_LAYER] = tensors.pop(VALUE_HEAD)
    ignored = frozenset({VALUE_HEAD_BIAS})
    specs, read = distributed.checked(path, tensors, hf, is_critic=is_critic, ignored=ignored)
    if VALUE_HEAD_BIAS in tensors and bool(tensors[VALUE_HEAD_BIAS].read().any()):
        raise_if_any(path, [f"{VALUE_HEAD_BIAS} is not zero, and our value head has no bias"])
    return Source(kind, path, hf, is_critic, specs, small, read, _tokenizer_name(config))


READER = Reader(f"a .nemo file or folder ({CONFIG_YAML})", is_nemo, open_nemo)


def _tensors_of(files: Mapping[str, Extent], config: dict) -> dict:
    """The archive's tensors by canonical name."""
    if ranks := old_layouts.rank_files(files):
        return old_layouts.from_rank_files(ranks, config)
    return distributed.canonical_tensors(old_layouts.zarr_arrays(files) or torch_dist.read_index(files, WEIGHTS))


def _check_same_model(path: Path, packed: dict, by_yaml: dict, is_critic: bool) -> None:
    """Raise ValueError where the two configs of an archive of ours differ: NeMo reads the yaml, we the config.json."""
    absent = {"rope_theta": DEFAULT_THETA, "tie_word_embeddings": False}
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
