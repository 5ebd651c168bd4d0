"""Names and shapes between Hugging Face (Qwen2, Llama) and Megatron-core: tables, and pure split / merge functions.

Legend: H query heads, G key/value groups, D head size, p = H / G heads a group, h hidden size, T tensor-parallel size.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["plain", "qkv", "gate_up", "vocab"]


@dataclass(frozen=True)
class Mapping:
    """How one Megatron parameter is made of Hugging Face tensors, and along which axis tensor ranks share it."""

    hf_names: tuple[str, ...]
    kind: Kind
    tp_dim: int | None  # None: replicated


@dataclass(frozen=True)
class Heads:
    num_heads: int
    num_groups: int
    head_dim: int


_TOP = {
    "embedding.word_embeddings.weight": Mapping(("model.embed_tokens.weight",), "vocab", 0),
    "decoder.final_layernorm.weight": Mapping(("model.norm.weight",), "plain", None),
    "output_layer.weight": Mapping(("lm_head.weight",), "vocab", 0),
}
_QKV = tuple(f"self_attn.{x}_proj" for x in "qkv")
# Transformer Engine fuses each norm into the linear after it, the local layers keep it apart: two names, one tensor.
_LAYER = {
    "input_layernorm.weight": Mapping(("input_layernorm.weight",), "plain", None),
    "self_attention.linear_qkv.layer_norm_weight": Mapping(("input_layernorm.weight",), "plain", None),
    "self_attention.linear_qkv.weight": Mapping(tuple(f"{x}.weight" for x in _QKV), "qkv", 0),
    "self_attention.linear_qkv.bias": Mapping(tuple(f"{x}.bias" for x in _QKV), "qkv", 0),
    "self_attention.linear_proj.weight": Mapping(("self_attn.o_proj.weight",), "plain", 1),
    "pre_mlp_layernorm.weight": Mapping(("post_attention_layernorm.weight",), "plain", None),
    "mlp.linear_fc1.layer_norm_weight": Mapping(("post_attention_layernorm.weight",), "plain", None),
    "mlp.linear_fc1.weight": Mapping(("mlp.gate_proj.weight", "mlp.up_proj.weight"), "gate_up", 0),
    "mlp.linear_fc2.weight": Mapping(("mlp.down_proj.weight",), "plain", 1),
}
_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def mapping(mcore_name: str, layer_offset: int = 0) -> Mapping:
    """The mapping of a parameter of `GPTModel.named_parameters()`, on a stage whose first layer is `layer_offset`.

    Raises ValueError for a name outside the tables.
    """
    if mcore_name in _TOP:
        return _TOP[mcore_name]
    match = _LAYER_NAME.fullmatch(mcore_name)
    if match and match[2] in _LAYER:
        inner = _LAYER[match[2]]
        prefix = f"model.layers.{int(match[1]) + layer_offset}."
        return Mapping(tuple(prefix + name for name in inner.hf_names), inner.kind, inner.tp_dim)
    raise ValueError(f"No Hugging Face tensor is known for the Megatron parameter {mcore_name!r}.")


def merge(kind: Kind, tensors: list[Tensor], heads: Heads) -> Tensor:
    """Hugging Face tensors -> one full Megatron tensor.

    Query, key and value interleave by group: [q of group 0 (p*D rows), k_0, v_0, q of group 1, ...].
    """
    if kind == "qkv":
        q, k, v = tensors
        rest = q.shape[1:]
        groups = heads.num_groups
        parts = [x.reshape(groups, -1, *rest) for x in (q, k, v)]
        return torch.cat(parts, dim=1).reshape(-1, *rest)
    if kind == "gate_up":
        return torch.cat(tensors, dim=0)
    return tensors[0]


def split(kind: Kind, full: Tensor, heads: Heads) -> list[Tensor]:
    """One full Megatron tensor -> its Hugging Face tensors; the inverse of `merge`."""
    if kind == "qkv":
        rest = full.shape[1:]
        per_group = heads.num_heads // heads.num_groups
        grouped = full.reshape(heads.num_groups, per_group + 2, heads.head_dim, *rest)
        q = grouped[:, :per_group]
        k, v = grouped[:, per_group], grouped[:, per_group + 1]
        return [x.reshape(-1, *rest) for x in (q, k, v)]
    if kind == "gate_up":
        return list(full.chunk(2, dim=0))
    return [full]


def shard(kind: Kind, full: Tensor, tp_dim: int | None, rank: int, size: int) -> Tensor:
    """Tensor rank `rank`'s part of a full tensor. A gate_up rank holds its part of the gate, then its part of the up
    projection; vocabulary rows are padded with zeros up to a multiple of `size`."""
    if tp_dim is None or size == 1:
        return full
    if kind == "gate_up":
        return torch.cat([half.chunk(size, dim=0)[rank] for half in full.chunk(2, dim=0)], dim=0)
    if kind == "vocab":
        missing = -full.shape[0] % size
        full = torch.cat([full, full.new_zeros(missing, *full.shape[1:])]) if missing else full
    return full.chunk(size, dim=tp_dim)[rank]


def unshard(kind: Kind, shards: list[Tensor], tp_dim: int | None, vocab_size: int) -> Tensor:
    """The full tensor from every tensor rank's part; the inverse of `shard`. Vocabulary padding is dropped."""
    if tp_dim is None:
        return shards[0]
    if kind == "gate_up":
        halves = [part.chunk(2, dim=0) for part in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves], dim=0)
    full = shards[0] if len(shards) == 1 else torch.cat(shards, dim=tp_dim)
    return full[:vocab_size] if kind == "vocab" else full
