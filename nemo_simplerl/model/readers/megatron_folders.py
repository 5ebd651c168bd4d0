"""NeMo 2 folders and checkpoints of Megatron-Bridge and Megatron-LM: settings from their own files, weights in
`torch_dist`, layers stacked or under keys of their own.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_simplerl.config.families import rope_type
from nemo_simplerl.config.forms.folder import FORMS
from nemo_simplerl.config.hf_config import DEFAULT_THETA
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats import torch_dist
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.megatron_settings import hf_config
from nemo_simplerl.model.hf_map import EMBEDDING, OUTPUT_LAYER
from nemo_simplerl.model.readers.base import Reader, Source
from nemo_simplerl.model.readers.distributed import canonical_tensors, checked, vocab_size
from nemo_simplerl.model.readers.small_files import read_config, small_files, top_files

_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")


def reader(form: str, description: str) -> Reader:
    """The reader of one of `config.forms`."""
    fits, _ = FORMS[form]
    return Reader(description, lambda path: path.is_dir() and fits(path), partial(open_folder, form))


def open_folder(form: str, path: Path, critic: bool = False, tokenizer: Path | None = None) -> Source:
    """The model of a folder: a critic where its output layer has one row, whatever `critic` asks for.

    tokenizer, and what is raised: see `open_source`. A config.json beside the tokenizer's files, as our own folders
    have it, adds what the form cannot hold, if it is one of the same model.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder.")
    described = FORMS[form][1](path)
    stored = torch_dist.read_index(top_files(described.weights), wanted=lambda key: not _OPTIMIZER.match(key))
    tensors = canonical_tensors(stored)
    is_critic = OUTPUT_LAYER in tensors and tensors[OUTPUT_LAYER].shape[:1] == (1,)
    small = small_files(top_files(described.tokenizer_folder)) if described.tokenizer_folder else {}
    packed = _packed_config(small, described.tokenizer_folder)
    rows = tensors[EMBEDDING].shape[0] if EMBEDDING in tensors else 0
    if tokenizer is None and described.settings.get("vocab_size") is None and 0 < packed.get("vocab_size", 0) < rows:
        rows = packed["vocab_size"]
    hf = hf_config(described, vocab_size(tokenizer, rows))
    if packed and _key_settings(packed) == _key_settings(hf):
        # NeMo's importers untie what Hugging Face ties: of that the folder's own settings decide.
        tie = {} if is_critic else {"tie_word_embeddings": hf["tie_word_embeddings"]}
        hf = packed | tie
    specs, read = checked(path, tensors, hf, is_critic=is_critic)
    return Source(form, path, hf, is_critic, specs, small, read, described.tokenizer)


def _packed_config(small: Mapping[str, Extent], folder: Path | None) -> dict[str, Any]:
    """The config.json among the small files; empty where there is none, or it is of a model that is not supported."""
    if folder is None or "config.json" not in small:
        return {}
    try:
        return read_config(small["config.json"], folder / "config.json")
    except ValueError:  # the tokenizer's files may come from another model's folder
        return {}


def _key_settings(hf: dict) -> tuple:
    """What must be equal in two configs of one model; the length of its positions is often another after training."""
    sizes = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    scaling = dict(hf.get("rope_scaling") or {}) | {"type": None, "rope_type": rope_type(hf)}
    rope = (hf.get("rope_theta") or DEFAULT_THETA, scaling)
    return (*(hf.get(name) for name in sizes), hf_map.heads_of(hf), rope)
