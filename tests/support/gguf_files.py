"""GGUF files of small models, written by llama.cpp's own package as its converter would."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.torch import load_file

from nemo_simplerl.config.families import FAMILIES
from nemo_simplerl.config.hf_config import DEFAULT_THETA
from nemo_simplerl.model.readers.small_files import read_config, top_files

F32 = GGMLQuantizationType.F32
_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
# A byte-level vocabulary of three letters, a blank, digits and merges, and two control tokens.
TOKENS = ["<|end|>", "<|turn|>", "a", "b", "Ġ", "1", "2", "ab", "12", "Ġab"]
MERGES = ["a b", "1 2", "Ġ ab"]
TOKENIZER = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": TOKENS,
    "token_type": [3, 3] + [1] * (len(TOKENS) - 2),
    "merges": MERGES,
    "eos_token_id": 0,
}


def save_gguf(
    folder: Path,
    file: Path,
    kind: GGMLQuantizationType = F32,
    *,
    kinds: Mapping[str, GGMLQuantizationType] = {},
    tokenizer: Mapping[str, Any] = TOKENIZER,
    changes: Mapping[str, Any] = {},
    without: tuple[str, ...] = (),
    architecture: str | None = None,
) -> Path:
    """Write the model of a Hugging Face folder as a GGUF file whose matrices are of `kind`, and return it.

    kinds: other ones by GGUF's name of a tensor. changes: values of keys; None leaves a key out. without: tensors that
    are left out.
    """
    hf = read_config(top_files(folder)["config.json"], folder)
    is_llama = FAMILIES[hf["model_type"]].gguf != "plain"
    architecture = architecture or ("llama" if is_llama else hf["model_type"])
    keys = {f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()}
    keys |= {f"{architecture}.{name}": value for name, value in _keys(hf).items()}
    writer = GGUFWriter(str(file), architecture)
    for key, value in (keys | dict(changes)).items():
        if value is not None:
            _add(writer, key, value)
    tensors = {_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    if (scaling := hf.get("rope_scaling")) and scaling.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _divisors(hf)
    for name, tensor in tensors.items():
        if name in without:
            continue
        values = tensor.float().numpy()
        if is_llama and (".attn_q." in name or ".attn_k." in name):
            heads = hf["num_attention_heads"] if ".attn_q." in name else hf["num_key_value_heads"]
            values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        own = kinds.get(name, kind if values.ndim > 1 else F32)
        if own in (F32, GGMLQuantizationType.F16):
            writer.add_tensor(name, values.astype(np.float16 if own != F32 else np.float32))
        else:
            writer.add_tensor(name, quantize(np.ascontiguousarray(values), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _keys(hf: dict) -> dict[str, Any]:
    """The keys of llama.cpp's converter, below the architecture."""
    keys = {
        "embedding_length": hf["hidden_size"],
        "feed_forward_length": hf["intermediate_size"],
        "block_count": hf["num_hidden_layers"],
        "attention.head_count": hf["num_attention_heads"],
        "attention.head_count_kv": hf["num_key_value_heads"],
        "context_length": hf["max_position_embeddings"],
        "attention.layer_norm_rms_epsilon": float(hf["rms_norm_eps"]),
        "rope.freq_base": float(hf.get("rope_theta") or DEFAULT_THETA),
    }
    if hf.get("head_dim"):
        keys |= dict.fromkeys(("attention.key_length", "attention.value_length"), hf["head_dim"])
    return keys


def _divisors(hf: dict) -> torch.Tensor:
    """What Llama 3's scaling divides the rotary frequencies by, of transformers."""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

    scaled = LlamaRotaryEmbedding(LlamaConfig.from_dict(hf)).inv_freq
    return LlamaRotaryEmbedding(LlamaConfig.from_dict(hf | {"rope_scaling": None})).inv_freq / scaled


def _name(name: str) -> str:
    for theirs, ours in _PARTS.items():
        name = name.replace(theirs, ours)
    return name


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a key in the type that the converter gives it."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)
