"""The description of a model that a folder of Megatron's holds, and the small files it is read from."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_MAX_TEXT = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a folder says of its model. `settings` are under the names of Megatron-core's TransformerConfig and
    GPTModel; functions and dtypes in it are the last part of their names: "silu", "bfloat16".
    """

    form: str  # nemo2, bridge or megatron
    weights: Path  # the folder of .metadata
    where: Path  # the file of the settings, for errors
    settings: dict[str, Any]
    class_name: str  # of the config in NeMo or Megatron-Bridge, or what else names the family; "" where nothing does
    tokenizer: str | None  # the folder or hub name that is given for the tokenizer
    tokenizer_folder: Path | None  # where the tokenizer's files are, if they came along


class _Loader(yaml.SafeLoader):
    """Builds nothing but plain values. 1e-6 is a number, as OmegaConf has it, and not a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*\.?[\d_]*[eE][-+]?\d+"), list("-+0123456789")
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for anything else."""
    try:
        content = json.loads(read_small(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return _mapping(content, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError for anything else, and for tags that ask for an object."""
    try:
        content = yaml.load(read_small(path), _Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML of plain values: {' '.join(str(error).split())}") from error
    return _mapping(content, path)


def read_small(path: Path, largest: int = _MAX_TEXT) -> bytes:
    """The content of a file. Raises ValueError where it is too large to be read whole, or not there."""
    try:
        size = path.stat().st_size
        if size > largest:
            raise ValueError(f"{path} has {size} bytes, more than any model needs.")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} could not be read: {error.strerror or error}.") from error


def plain(value: Any) -> Any:
    """A YAML value, with `{_target_: torch.nn.functional.silu, ...}` as "silu"."""
    if isinstance(value, dict) and isinstance(value.get("_target_"), str):
        return value["_target_"].rpartition(".")[2]
    return value


def _mapping(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings.")
    return content
