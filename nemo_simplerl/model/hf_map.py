"""Names, shapes and values of parameters between Hugging Face and Megatron-core: tables and pure functions.

Legend: H query heads, G key/value groups, D head size, p = H / G heads a group, h hidden size, T tensor-parallel size.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemo_simplerl.config.families import Family, family_of

# How the parts of a Megatron parameter lie in it.
ShardKind = Literal["plain", "qkv", "gate_up", "vocab"]


@dataclass(frozen=True)
class Mapping:
    """How one Megatron parameter is made of Hugging Face tensors, and the axis along which tensor ranks split it."""

    hf_names: tuple[str, ...]
    kind: ShardKind
    tp_dim: int | None  # None: replicated


@dataclass(frozen=True)
class Heads:
    """Sizes of an attention layer."""

    num_heads: int
    num_groups: int
    head_dim: int


# Hugging Face name of a critic's value head: a saved critic loads as transformers' ...ForSequenceClassification.
VALUE_HEAD = "score.weight"
EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"  # in a critic, the value head
_FINAL_NORM = "decoder.final_layernorm.weight"
_TOP = {
    EMBEDDING: Mapping(("model.embed_tokens.weight",), "vocab", 0),
    _FINAL_NORM: Mapping(("model.norm.weight",), "plain", None),
    OUTPUT_LAYER: Mapping(("lm_head.weight",), "vocab", 0),
}
_QKV = tuple(f"self_attn.{x}_proj" for x in "qkv")
# In the order of a layer's computation. The names are Transformer Engine's, the canonical ones.
_LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": Mapping(("input_layernorm.weight",), "plain", None),
    "self_attention.linear_qkv.weight": Mapping(tuple(f"{x}.weight" for x in _QKV), "qkv", 0),
    "self_attention.linear_qkv.bias": Mapping(tuple(f"{x}.bias" for x in _QKV), "qkv", 0),
    "self_attention.q_layernorm.weight": Mapping(("self_attn.q_norm.weight",), "plain", None),
    "self_attention.k_layernorm.weight": Mapping(("self_attn.k_norm.weight",), "plain", None),
    "self_attention.linear_proj.weight": Mapping(("self_attn.o_proj.weight",), "plain", 1),
    "mlp.linear_fc1.layer_norm_weight": Mapping(("post_attention_layernorm.weight",), "plain", None),
    "mlp.linear_fc1.weight": Mapping(("mlp.gate_proj.weight", "mlp.up_proj.weight"), "gate_up", 0),
    "mlp.linear_fc2.weight": Mapping(("mlp.down_proj.weight",), "plain", 1),
}
# Transformer Engine fuses each norm into the linear after it, the local layers keep it apart: two names, one tensor.
_LOCAL_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def canonical(mcore_name: str) -> str:
    """The name that a parameter has in Transformer Engine's layers, for its name in those or in the local ones."""
    match = _LAYER_NAME.fullmatch(mcore_name)
    if match and match[2] in _LOCAL_NORMS:
        return f"decoder.layers.{match[1]}.{_LOCAL_NORMS[match[2]]}"
    return mcore_name


def full_name(mcore_name: str, layer_offset: int) -> str:
    """Canonical name in the whole model of a pipeline stage's parameter. `layer_offset`: the stage's first layer."""
    match = _LAYER_NAME.fullmatch(canonical(mcore_name))
    return f"decoder.layers.{int(match[1]) + layer_offset}.{match[2]}" if match else mcore_name


def blocks(
    entry: Mapping, part: Tensor, rank: int, size: int, shape: tuple[int, ...]
) -> list[tuple[tuple[int, ...], Tensor]]:
    """The blocks of tensor rank `rank`'s shard and the offsets of each in the full parameter: (offsets, block) pairs.

    `shape` is that of the full parameter; padding of the vocabulary is left out. The inverse of `shard`.
    """
    origin = (0,) * len(shape)
    if entry.tp_dim is None or size == 1:
        return [(origin, part[: shape[0]])]
    if entry.kind == "gate_up":
        gate, up = part.chunk(2, dim=0)
        rows = gate.shape[0]
        return [((rows * rank, *origin[1:]), gate), ((rows * (size + rank), *origin[1:]), up)]
    start = part.shape[entry.tp_dim] * rank
    if entry.kind == "vocab":
        part = part[: max(0, shape[0] - start)]
    return [((*origin[: entry.tp_dim], start, *origin[entry.tp_dim + 1 :]), part)] if part.numel() else []


def layer_params(family: Family) -> tuple[str, ...]:
    """Canonical names of one layer's parameters, below `decoder.layers.N.`."""
    absent = set()
    if not family.qkv_bias:
        absent.add("self_attention.linear_qkv.bias")
    if not family.qk_norm:
        absent |= {"self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"}
    return tuple(name for name in _LAYER if name not in absent)


def model_params(hf: dict, *, critic: bool = False) -> list[str]:
    """Canonical names of the whole model's parameters, in order. A critic's value head is not among them.

    Tied embeddings have one name. Raises ValueError for an unknown family.
    """
    inner = layer_params(family_of(hf))
    layers = [f"decoder.layers.{layer}.{name}" for layer in range(hf["num_hidden_layers"]) for name in inner]
    has_output = not critic and not hf.get("tie_word_embeddings", False)
    return [EMBEDDING, *layers, _FINAL_NORM, *([OUTPUT_LAYER] if has_output else [])]


def mapping(mcore_name: str, layer_offset: int = 0, *, critic: bool = False) -> Mapping:
    """The mapping of a parameter of `GPTModel.named_parameters()`, on a stage whose first layer is `layer_offset`.

    critic: the output layer is a value head. Raises ValueError for a name outside the tables.
    """
    if critic and mcore_name == OUTPUT_LAYER:
        return Mapping((VALUE_HEAD,), "plain", None)
    if mcore_name in _TOP:
        return _TOP[mcore_name]
    match = _LAYER_NAME.fullmatch(canonical(mcore_name))
    if match and match[2] in _LAYER:
        inner = _LAYER[match[2]]
        prefix = f"model.layers.{int(match[1]) + layer_offset}."
        return Mapping(tuple(prefix + name for name in inner.hf_names), inner.kind, inner.tp_dim)
    raise ValueError(f"No Hugging Face tensor is known for the Megatron parameter {mcore_name!r}.")


def heads_of(hf: dict) -> Heads:
    """Attention shape of an HF config."""
    num_heads = hf["num_attention_heads"]
    return Heads(
        num_heads,
        hf.get("num_key_value_heads") or num_heads,
        hf.get("head_dim") or hf["hidden_size"] // num_heads,
    )


def param_shape(name: str, hf: dict, *, critic: bool = False) -> tuple[int, ...]:
    """Shape of a full Megatron parameter: not sharded, its vocabulary not padded. critic: as in `mapping`."""
    if critic and name == OUTPUT_LAYER:
        return (1, hf["hidden_size"])
    heads, hidden, ffn = heads_of(hf), hf["hidden_size"], hf["intermediate_size"]
    qkv = (heads.num_heads + 2 * heads.num_groups) * heads.head_dim
    shapes = {
        "self_attention.linear_qkv.weight": (qkv, hidden),
        "self_attention.linear_qkv.bias": (qkv,),
        "self_attention.q_layernorm.weight": (heads.head_dim,),
        "self_attention.k_layernorm.weight": (heads.head_dim,),
        "self_attention.linear_proj.weight": (hidden, heads.num_heads * heads.head_dim),
        "mlp.linear_fc1.weight": (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }
    kind = mapping(name).kind  # refuses unknown names
    if kind == "vocab":
        return (hf["vocab_size"], hidden)
    match = _LAYER_NAME.fullmatch(name)
    return shapes.get(match[2], (hidden,)) if match else (hidden,)


def expected_names(hf: dict, *, critic: bool = False) -> list[str]:
    """Names of the HF tensors that a model is filled from, without a critic's value head, which may be fresh."""
    return [hf_name for name in model_params(hf, critic=critic) for hf_name in mapping(name).hf_names]


def unknown_names(hf_names: Iterable[str], hf: dict, *, critic: bool = False) -> list[str]:
    """The names that no parameter is filled from and that are not known to be harmless.

    Rotary frequencies, which old folders hold, follow from the config. Tied embeddings may be stored twice; the two
    must be equal, which the names cannot tell. A critic may start from an actor's folder.
    """
    known = set(expected_names(hf, critic=critic))
    if critic:
        known |= {VALUE_HEAD, "lm_head.weight"}
    if hf.get("tie_word_embeddings", False):
        known.add("lm_head.weight")
    return [name for name in hf_names if name not in known and not name.endswith("rotary_emb.inv_freq")]


def check_names(hf_names: Iterable[str], hf: dict, where: object, *, critic: bool = False) -> None:
    """Raise one ValueError that lists the tensors `where` lacks, and those it has that no parameter is filled from."""
    found = set(hf_names)
    missing = [name for name in expected_names(hf, critic=critic) if name not in found]
    unknown = unknown_names(sorted(found), hf, critic=critic)
    problems = [f"lacks {', '.join(_by_layer(missing))}"] if missing else []
    problems += [f"has unknown {', '.join(_by_layer(unknown))}"] if unknown else []
    if problems:
        raise ValueError(
            f"{where} {' and '.join(problems)}; weights and config.json ({hf['model_type']}, "
            f"{hf['num_hidden_layers']} layers) do not belong together."
        )


def _by_layer(names: list[str]) -> list[str]:
    """The names, with those that differ in the layer alone joined: `model.layers.0,1,2.mlp.up_proj.weight`."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = re.fullmatch(r"(model\.layers\.)(\d+)(\..+)", name)
        numbers.setdefault((match[1], match[3]) if match else (name, ""), []).extend([match[2]] if match else [])
    return [head + ",".join(layers) + tail for (head, tail), layers in numbers.items()]


def merge(kind: ShardKind, tensors: list[Tensor], heads: Heads) -> Tensor:
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


def split(kind: ShardKind, full: Tensor, heads: Heads) -> list[Tensor]:
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


def hf_tensors(
    tensors: Iterable[tuple[str, Tensor]], hf: dict, *, critic: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of each (canonical name, full Megatron tensor) in turn."""
    heads = heads_of(hf)
    for name, tensor in tensors:
        entry = mapping(name, critic=critic)
        yield from zip(entry.hf_names, split(entry.kind, tensor, heads), strict=True)


def split_shapes(kind: ShardKind, shape: tuple[int, ...], heads: Heads) -> list[tuple[int, ...]]:
    """Shapes of the Hugging Face tensors into which `split` cuts a tensor of `shape`."""
    if kind == "qkv":
        return [(n * heads.head_dim, *shape[1:]) for n in (heads.num_heads, heads.num_groups, heads.num_groups)]
    if kind == "gate_up":
        return [(shape[0] // 2, *shape[1:])] * 2
    return [shape]


def shard(kind: ShardKind, full: Tensor, tp_dim: int | None, rank: int, size: int) -> Tensor:
    """Tensor rank `rank`'s shard of a full tensor. A gate_up rank holds its part of the gate, then its part of the up
    projection; vocabulary rows are padded with zeros up to a multiple of `size`."""
    if tp_dim is None or size == 1:
        return full
    if kind == "gate_up":
        return torch.cat([half.chunk(size, dim=0)[rank] for half in full.chunk(2, dim=0)], dim=0)
    if kind == "vocab":
        missing = -full.shape[0] % size
        full = torch.cat([full, full.new_zeros(missing, *full.shape[1:])]) if missing else full
    return full.chunk(size, dim=tp_dim)[rank]


def unshard(kind: ShardKind, shards: list[Tensor], tp_dim: int | None, vocab_size: int) -> Tensor:
    """The full tensor from every tensor rank's shard; the inverse of `shard`. Vocabulary padding is dropped."""
    if tp_dim is None:
        return shards[0]
    if kind == "gate_up":
        halves = [part.chunk(2, dim=0) for part in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves], dim=0)
    full = shards[0] if len(shards) == 1 else torch.cat(shards, dim=tp_dim)
    return full[:vocab_size] if kind == "vocab" else full
