"""GGUF files of llama.cpp: quantized weights, which are read as the float32 numbers that they stand for."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from torch import Tensor

from nemo_simplerl.config.families import family_of
from nemo_simplerl.config.forms.gguf import TensorEntry, is_gguf, read_header
from nemo_simplerl.config.forms.gguf_config import hf_config
from nemo_simplerl.config.forms.gguf_types import quantizations
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.readers.base import Reader, Source
from nemo_simplerl.model.readers.gguf_tokenizer import tokenizer_files
from nemo_simplerl.model.readers.huggingface import source_of_tensors

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"  # says of the config what no key does
_KEPT = {GGMLQuantizationType.F16: torch.float16, GGMLQuantizationType.BF16: torch.bfloat16}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor on disk. interleaved_heads: so many heads whose two halves of rows take turns; 0: none."""

    data: Extent
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    dtype: torch.dtype
    interleaved_heads: int

    def read(self) -> Tensor:
        """The tensor with its rows as in Hugging Face's form."""
        stored = np.empty(self.data.size, np.uint8)
        self.data.read_into(memoryview(stored))
        rows = dequantize(stored.reshape(*self.shape[:-1], -1), self.kind)
        if self.interleaved_heads:
            rows = rows.reshape(self.interleaved_heads, -1, 2, *self.shape[1:]).swapaxes(1, 2).reshape(self.shape)
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.dtype)


def open_gguf(path: Path, critic: bool = False, tokenizer: Path | None = None) -> Source:
    """The model of a GGUF file, never a critic. Weights of 16 bits keep their dtype where every matrix has it.

    `critic` and `tokenizer` change nothing. Raises ValueError for a damaged file, for a model that is not supported,
    and for tensors that are missing, unknown, misshapen or in a quantization that is not known.
    """
    header = read_header(path)
    hf = hf_config(header)
    tensors = {_hf_name(name): entry for name, entry in header.tensors.items() if name != _ROPE_FACTORS}
    kinds = quantizations(header)
    matrices = {kinds[entry.type_id] for entry in tensors.values() if len(entry.shape) > 1}
    dtype = _KEPT.get(matrices.pop(), torch.float32) if len(matrices) == 1 else torch.float32
    stored = {name: _tensor(path, name, entry, kinds[entry.type_id], dtype, hf) for name, entry in tensors.items()}
    small, problem = {}, None
    try:
        small = tokenizer_files(header.metadata)
    except (ValueError, TypeError) as error:
        problem = str(error)
    return source_of_tensors("gguf", path, hf, stored, small, tokenizer_problem=problem)


READER = Reader("a GGUF file", is_gguf, open_gguf)


def _tensor(
    path: Path, name: str, entry: TensorEntry, kind: GGMLQuantizationType, dtype: torch.dtype, hf: dict
) -> GgufTensor:
    """A tensor of the file. Raises ValueError where its rows are no whole blocks, or lie beyond the file's end."""
    block, num_bytes = GGML_QUANT_SIZES[kind]
    if not entry.shape or entry.shape[-1] % block:
        raise ValueError(f"{path} is damaged: {name} is {entry.shape} in blocks of {block} ({kind.name}).")
    size = math.prod(entry.shape) // block * num_bytes
    if entry.offset + size > path.stat().st_size:
        raise ValueError(f"{path} ends before {name} does: it is cut off; fetch it again.")
    heads = hf_map.heads_of(hf)
    rows = {"q_proj": heads.num_heads, "k_proj": heads.num_groups} if family_of(hf).gguf == "interleaved" else {}
    turned = next((count for part, count in rows.items() if f".{part}." in name), 0)
    own = dtype if len(entry.shape) > 1 else _KEPT.get(kind, torch.float32)
    return GgufTensor(Extent(path, entry.offset, size), kind, entry.shape, own, turned)


def _hf_name(name: str) -> str:
    """Hugging Face's name of a tensor; its own where no model that is trained has it, which is then reported."""
    inner, _, ending = name.rpartition(".")
    if inner in _TOP:
        return f"{_TOP[inner]}.{ending}"
    parts = inner.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{ending}"
    return name
