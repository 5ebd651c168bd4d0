"""What the forms with distributed checkpoints have in common: tensors by canonical name, held against a config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats import old_layouts, torch_dist
from nemo_simplerl.model.formats.safetensors_io import Spec
from nemo_simplerl.model.hf_map import EMBEDDING, OUTPUT_LAYER
from nemo_simplerl.model.readers.base import dtype_problems, raise_if_any
from nemo_simplerl.model.readers.small_files import tokenizer_files


@dataclass(frozen=True)
class StackedLayer:
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


def canonical_tensors(stored: Mapping[str, torch_dist.GlobalTensor | old_layouts.ZarrArray]) -> dict:
    """The tensors of a checkpoint by canonical name, whether layers are stacked into one or have keys of their own."""
    tensors: dict = {}
    for key, tensor in stored.items():
        name = old_layouts.without_prefix(key)
        if "_extra_state" in name:
            continue
        if name.startswith("decoder.layers.") and not name.split(".")[2].isdecimal():
            rest = name.removeprefix("decoder.layers.")
            if 0 in tensor.shape or not tensor.shape:
                raise ValueError(f"{key} has shape {tensor.shape}: it holds no layers.")
            for row in range(tensor.shape[0]):
                tensors[hf_map.canonical(f"decoder.layers.{row}.{rest}")] = StackedLayer(tensor, row)
        else:
            tensors[hf_map.canonical(name)] = tensor
    return tensors


def vocab_size(tokenizer: Path | None, rows: int) -> int:
    """How many rows of the embeddings are tokens. NeMo pads a vocabulary and may not note its size."""
    _, config = tokenizer_files(tokenizer) if tokenizer else ({}, {})
    given = config.get("vocab_size")
    return given if isinstance(given, int) and 0 < given < rows else rows


def checked(
    path: Path, tensors: dict, hf: dict, *, is_critic: bool, ignored: frozenset[str] = frozenset()
) -> tuple[dict[str, Spec], Callable[[str], Tensor]]:
    """Name, shape and dtype of each parameter, and the function that reads one without the rows that pad a vocabulary.

    tensors: by canonical name; a critic's value head is its output layer. ignored: names that are no parameters.
    Raises one ValueError that lists the tensors that are missing, unknown, misshapen, quantized or inconsistent.
    """
    names = hf_map.model_params(hf, critic=is_critic) + [OUTPUT_LAYER] * is_critic
    _check_tensors(path, names, tensors, hf, is_critic, ignored)
    specs = {name: Spec(name, hf_map.param_shape(name, hf, critic=is_critic), tensors[name].dtype) for name in names}

    def read(name: str) -> Tensor:
        return tensors[name].read()[: specs[name].shape[0]]

    return specs, read


def _check_tensors(
    path: Path, names: list[str], tensors: dict, hf: dict, is_critic: bool, ignored: frozenset[str]
) -> None:
    """Raise ValueError as `checked`."""
    known = {*names, OUTPUT_LAYER, *ignored}  # tied embeddings may be stored twice
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
    raise_if_any(path, wrong)
