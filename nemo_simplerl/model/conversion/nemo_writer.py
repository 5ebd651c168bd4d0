"""Writer of a `.nemo` into a tar or a folder: config, weights as a Megatron distributed checkpoint, and the Hugging
Face files that make it self-contained.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from torch import Tensor

from nemo_simplerl.files import synced_beside
from nemo_simplerl.model.formats import torch_dist
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.hf_map import OUTPUT_LAYER
from nemo_simplerl.model.readers.nemo import CONFIG_YAML, HF_FILES, VALUE_HEAD, VALUE_HEAD_BIAS, WEIGHTS

# Opens a file of the archive for writing.
Create = Callable[[str], AbstractContextManager[BinaryIO]]
PREFIX = "model."  # of every key in a `.nemo`
_LAYERS = "decoder.layers."
# Transformer Engine's modules, each of which loads a state of its own. An empty one means: no FP8 scales.
_EXTRA_STATES = (
    "self_attention.core_attention",
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


def folder_writer(folder: Path) -> Create:
    """A function that opens files below `folder` for writing; each is on disk when it is closed."""

    @contextmanager
    def create(name: str):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            with synced_beside(file):
                yield file
            file.flush()
            os.fsync(file.fileno())

    return create


def stacked_key(name: str, prefix: str = PREFIX) -> tuple[str, int | None]:
    """Key of a canonical parameter in a distributed checkpoint, and the row of a layer's parameter in the tensor of
    that key: Megatron stacks the layers of a model. prefix: what the form puts before every name."""
    if not name.startswith(_LAYERS):
        return f"{prefix}{name}", None
    layer, _, rest = name.removeprefix(_LAYERS).partition(".")
    return f"{prefix}{_LAYERS}{rest}", int(layer)


def add_param(
    file: torch_dist.BlockSink,
    name: str,
    part: Tensor,
    shape: tuple[int, ...],
    num_layers: int,
    offsets: tuple[int, ...] | None = None,
    prefix: str = PREFIX,
) -> None:
    """Add to `file` the block `part` of the canonical parameter of full `shape`. offsets None: the whole parameter."""
    key, row = stacked_key(name, prefix)
    offsets = offsets or (0,) * len(shape)
    if row is not None:
        part, shape, offsets = part[None], (num_layers, *shape), (row, *offsets)
    file.add(key, part, shape, offsets)


def add_extra_states(file: torch_dist.BlockSink, num_layers: int, prefix: str = PREFIX) -> None:
    """Add an empty state for each of Transformer Engine's modules, which NeMo loads beside their weights."""
    for layer in range(num_layers):
        for module in _EXTRA_STATES:
            file.add_object(f"{prefix}{_LAYERS}{module}._extra_state/shard_{layer}_{num_layers}", [None])


def write_weights(create: Create, tensors: Iterable[tuple[str, Tensor]], num_layers: int, *, is_critic: bool) -> None:
    """Write full canonical parameters as one rank's checkpoint; a critic's value head is named as in NeMo-Aligner."""
    head = add_head if is_critic else None
    write_distributed(lambda name: create(f"{WEIGHTS}/{name}"), tensors, num_layers, prefix=PREFIX, head=head)


def write_distributed(
    create: Create,
    tensors: Iterable[tuple[str, Tensor]],
    num_layers: int,
    *,
    prefix: str,
    head: Callable[[torch_dist.BlockSink, Tensor], None] | None = None,
    common: Mapping[str, Any] | None = None,
) -> None:
    """Write full canonical parameters as one rank's `torch_dist` checkpoint.

    prefix: see `stacked_key`. head: adds the output layer in place of it. common: see `torch_dist.write_index`.
    """
    name_of_file = torch_dist.rank_file_name(0)
    torch_dist.import_early()
    with create(name_of_file) as stream:
        file = torch_dist.RankFile(stream, name_of_file)
        for name, tensor in tensors:
            if head is not None and name == OUTPUT_LAYER:
                head(file, tensor)
            else:
                add_param(file, name, tensor, tuple(tensor.shape), num_layers, prefix=prefix)
        add_extra_states(file, num_layers, prefix)
    torch_dist.write_index(create, file.written, common)


def add_head(file: torch_dist.BlockSink, weight: Tensor) -> None:
    """Add a critic's value head to `file`. NeMo-Aligner's has a bias, ours has none: zero is written."""
    file.add(f"model.{VALUE_HEAD}", weight, weight.shape, (0, 0))
    file.add(f"model.{VALUE_HEAD_BIAS}", torch.zeros(1, dtype=weight.dtype), (1,), (0,))


def write_small_files(create: Create, config: dict, small_files: Mapping[str, bytes | Extent]) -> None:
    """Write `model_config.yaml`, and below `hf/` the config.json and tokenizer files."""
    with create(CONFIG_YAML) as stream:
        stream.write(yaml.safe_dump(config, sort_keys=False).encode())
    write_files(create, HF_FILES, small_files)


def write_files(create: Create, folder: str, files: Mapping[str, bytes | Extent]) -> None:
    """Write files by name below `folder`."""
    for name, content in files.items():
        with create(f"{folder}/{name}") as stream:
            stream.write(content.read() if isinstance(content, Extent) else content)
