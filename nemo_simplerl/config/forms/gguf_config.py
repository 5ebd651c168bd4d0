"""The model that a GGUF file's header describes, as the config.json of the same model.

Keys are those of llama.cpp's converter (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import math
import struct
from collections.abc import Iterator
from typing import Any

from nemo_simplerl.config.families import FAMILIES, Family, check_hf_config
from nemo_simplerl.config.forms.gguf import Header, TensorEntry
from nemo_simplerl.config.hf_config import DEFAULT_THETA

# Key of config.json: key of the header, below the architecture's name.
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_EMBEDDING, _OUTPUT, _ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# What changes the computation into one that is not trained, and the values that change nothing.
_IDLE: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "use_parallel_residual": (False,),
    "rope.scaling.attn_factor": (1.0,),
}
_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # tokens whose ids config.json has too
_F32 = 0
# Llama 3's scaling as llama.cpp's converter assumes it; only the factors that follow from it are in the file.
_LOW, _HIGH, _CONTEXT = 1.0, 4.0, 8192
_ROUNDING = 1e-4  # of float32 powers, relative


def hf_config(header: Header) -> dict[str, Any]:
    """The config.json of the model.

    Raises one ValueError that lists everything that the training model would not honour, and for an architecture
    outside the table of families.
    """
    try:
        return _hf_config(header)
    except TypeError as error:  # a list or a text where a number belongs
        raise ValueError(f"{header.path}: a value is of the wrong kind ({error}).") from error


def _hf_config(header: Header) -> dict[str, Any]:
    architecture = header.metadata.get("general.architecture")
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None or family.gguf is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.gguf)
        raise ValueError(f"{header.path}: general.architecture is {architecture!r}; supported in GGUF: {known}.")
    if problems := list(_problems(header, family)):
        raise ValueError(f"{header.path}: {'; '.join(problems)}.")

    def value(key: str, default: Any = None) -> Any:
        return header.metadata.get(f"{architecture}.{key}", default)

    hf = {key: _shortest(value(theirs)) for key, theirs in _SIZES.items()}
    hf |= {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": header.tensors[_EMBEDDING].shape[0],
        "num_key_value_heads": value("attention.head_count_kv", hf["num_attention_heads"]),
        "hidden_act": "silu",
        "rope_theta": _shortest(value("rope.freq_base", DEFAULT_THETA)),
        "tie_word_embeddings": _OUTPUT not in header.tensors,
    }
    hf |= {
        f"{ours}_token_id": header.metadata[f"tokenizer.ggml.{theirs}_token_id"]
        for ours, theirs in _SPECIAL.items()
        if f"tokenizer.ggml.{theirs}_token_id" in header.metadata
    }
    if head_dim := value("attention.key_length", value("rope.dimension_count")):
        hf["head_dim"] = head_dim
    hf = check_hf_config(hf, header.path)
    head_dim = head_dim or hf["hidden_size"] // hf["num_attention_heads"]
    if "head_dim" not in family.own_sizes and head_dim * hf["num_attention_heads"] == hf["hidden_size"]:
        hf.pop("head_dim", None)
    hf["rope_scaling"] = _llama3_scaling(header, hf["rope_theta"], head_dim) or _scaling(value)
    return check_hf_config(hf, header.path)


def _problems(header: Header, family: Family) -> Iterator[str]:
    """What is missing in the header, and what in it is not trained."""
    name, metadata = family.model_type, header.metadata
    if missing := [f"{name}.{key}" for key in _SIZES.values() if f"{name}.{key}" not in metadata]:
        yield f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if len(header.tensors.get(_EMBEDDING, TensorEntry((), 0, 0)).shape) != 2:
        yield f"{_EMBEDDING} is missing or no matrix"
    for key, idle in _IDLE.items():
        if metadata.get(f"{name}.{key}", idle[0]) not in idle:
            yield f"{name}.{key} is {metadata[f'{name}.{key}']}, which is not supported"
    window, length = metadata.get(f"{name}.attention.sliding_window"), metadata.get(f"{name}.context_length", 0)
    if window and window < length:
        yield f"{name}.attention.sliding_window is {window} of {length} positions; only full attention is trained"
    of_head = {
        key: metadata[f"{name}.{key}"]
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        if f"{name}.{key}" in metadata
    }
    if len(set(of_head.values())) > 1:
        both = ", ".join(f"{name}.{key} is {value}" for key, value in of_head.items())
        yield f"{both}; only heads of one size that turn whole are trained"


def _scaling(value: Any) -> dict[str, Any] | None:
    """The rope_scaling that keys name, whatever its type: `check_hf_config` says which are supported."""
    factor = _shortest(value("rope.scaling.factor", value("rope.scale_linear", 1.0)))
    kind = value("rope.scaling.type", "linear")  # llama.cpp's default
    return None if kind == "none" or (kind, factor) == ("linear", 1.0) else {"rope_type": kind, "factor": factor}


def _llama3_scaling(header: Header, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3's scaling by the divisors of the frequencies that the file holds as a tensor; None where it has none.

    Raises ValueError for divisors that no factor explains.
    """
    entry = header.tensors.get(_ROPE_FACTORS)
    if entry is None:
        return None
    count = head_dim // 2
    if entry.shape != (count,) or entry.type_id != _F32:
        raise ValueError(f"{header.path}: {_ROPE_FACTORS} holds no {count} float32 values.")
    with open(header.path, "rb") as stream:
        stream.seek(entry.offset)
        content = stream.read(4 * count)
    if len(content) < 4 * count:
        raise ValueError(f"{header.path} ends before {_ROPE_FACTORS} does: it is cut off; fetch it again.")
    found = struct.unpack(f"<{count}f", content)
    factor = _shortest(max(found))
    if factor == min(found) == 1.0:
        return None
    expected = [_divisor(theta ** (-2 * index / head_dim), max(1.0, factor)) for index in range(count)]
    if not all(abs(one - other) <= _ROUNDING * other for one, other in zip(found, expected, strict=True)):
        raise ValueError(
            f"{header.path}: {_ROPE_FACTORS} holds other values than Llama 3's scaling by {factor:g} over {_CONTEXT} "
            "positions has; take the Hugging Face folder."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _CONTEXT,
    }


def _divisor(frequency: float, factor: float) -> float:
    """What Llama 3's scaling divides a rotary frequency by."""
    turns = _CONTEXT * frequency / (2 * math.pi)  # over the original context
    share = min(1.0, max(0.0, (turns - _LOW) / (_HIGH - _LOW)))
    return 1 / ((1 - share) / factor + share)


def _shortest(value: Any) -> Any:
    """A float32 as the shortest decimal that rounds to it: 1e-05 for 9.999999747378752e-06. Other values as given."""
    if not isinstance(value, float) or not abs(value) < 3e38:
        return value
    texts = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next(text for text in texts if struct.pack("<f", text) == struct.pack("<f", value))
