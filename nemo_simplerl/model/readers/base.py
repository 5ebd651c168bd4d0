"""The interface of a reader of model files, and what readers have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.safetensors_io import Spec


@dataclass(frozen=True)
class Source:
    """A model on disk. `small_files` are its config.json, generation_config.json and tokenizer files, by name."""

    kind: str  # name of its form in model.source.READERS
    path: Path
    hf: dict  # its config.json
    is_critic: bool
    specs: Mapping[str, Spec]  # canonical name -> full shape, and dtype on disk
    small_files: Mapping[str, bytes | Extent]
    read: Callable[[str], Tensor]  # the full tensor of a canonical name, from disk
    tokenizer: str | None  # the folder or hub name that a `.nemo` gives for its tokenizer
    tokenizer_problem: str | None = None  # why the tokenizer that is there is not among the small files

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights; a value head may have another."""
        return next(iter(self.specs.values())).dtype

    @property
    def num_bytes(self) -> int:
        """Size of all tensors on disk."""
        return sum(spec.num_bytes for spec in self.specs.values())


@dataclass(frozen=True)
class Reader:
    """One form of model files: how it is recognised, and how it is opened."""

    description: str  # for the error at a path that no reader recognises
    recognises: Callable[[Path], bool]
    # (path, critic, tokenizer) -> Source, as `open_source` takes them; `critic` picks where a path holds both roles.
    open: Callable[[Path, bool, Path | None], Source]


def dtype_problems(name: str, dtype: torch.dtype) -> list[str]:
    """What is wrong with the dtype of a tensor: nothing, or that it is quantized."""
    return [] if dtype.is_floating_point else [f"{name} is {dtype}: quantized weights are not supported"]


def raise_if_any(path: Path, problems: list[str], shown: int = 12) -> None:
    """Raise one ValueError that lists the problems, the first `shown` of them, of the tensors at `path`."""
    if problems:
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        raise ValueError(f"{path}: weights and config do not belong together: {'; '.join(problems[:shown])}{more}.")
