"""Files beside a model's weights: config.json, generation_config.json and the tokenizer's."""

import json
from collections.abc import Mapping
from pathlib import Path

from nemo_simplerl.config.families import check_hf_config
from nemo_simplerl.model.formats.archive import Extent

_MAX_BYTES = 256 << 20
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


def top_files(folder: Path) -> dict[str, Extent]:
    """The files of a Hugging Face folder itself, by name. Weights may be links into a hub's cache.

    Raises ValueError where there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a Hugging Face model folder.")
    return {entry.name: Extent(entry, 0, entry.stat().st_size) for entry in sorted(folder.iterdir()) if entry.is_file()}


def small_files(files: Mapping[str, Extent]) -> dict[str, Extent]:
    """The files that go with the weights; not code, adapters and whatever else lies there."""
    names = ("config.json", "generation_config.json", *_TOKENIZER_FILES)
    return {name: bounded(files[name], name) for name in names if name in files}


def tokenizer_files(folder: Path) -> tuple[dict[str, Extent], dict]:
    """Tokenizer files of a Hugging Face folder by name, and its config.json (empty where it has none)."""
    files = small_files(top_files(folder))
    config = _read_json(files["config.json"], folder / "config.json") if "config.json" in files else {}
    return {name: file for name, file in files.items() if name in _TOKENIZER_FILES}, config


def read_config(file: Extent, where: object) -> dict:
    """A config.json that the training model honours. Raises one ValueError that lists what it does not."""
    hf = _read_json(file, where)
    check_hf_config(hf, where)
    return hf


def bounded(file: Extent, where: object) -> Extent:
    """The file itself. Raises ValueError where it is too large to be read whole."""
    if file.size > _MAX_BYTES:
        raise ValueError(f"{where} has {file.size} bytes, which no config and no tokenizer needs.")
    return file


def _read_json(file: Extent, where: object) -> dict:
    """The object in a JSON file. Raises ValueError for anything else."""
    try:
        content = json.loads(bounded(file, where).read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds no JSON object; fetch the model again.")
    return content
