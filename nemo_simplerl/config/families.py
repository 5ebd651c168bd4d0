"""The model families that can be trained, as a table: a new family is an entry here and a test.

The configuration, `plan`, the name tables of model/hf_map.py, the network and the NeMo formats all ask the entry.
Loads nothing but the standard library.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from nemo_simplerl.config.hf_config import DEFAULT_THETA, in_old_form

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
# Beyond any model: a damaged config must not have a million names listed.
_LARGEST = {"num_hidden_layers": 1 << 12}
# transformers knows the other kinds too; the training model does not.
_ROPE_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What sets a family apart among decoders with RMSNorm, rotary positions and a SiLU-gated MLP."""

    model_type: str  # of config.json
    architecture: str  # transformers' class
    qkv_bias: bool = False
    qk_norm: bool = False  # an RMSNorm over each head's query and key, before the rotation
    own_sizes: tuple[str, ...] = ()  # where the key is absent, transformers assumes a size of its own
    # model_type of a family that computes the same: a file that names no family is read as that one.
    computes_as: str | None = None
    window: int | None = None  # sliding_window where the key is absent; None: the key alone asks for no window
    # How rows of queries and keys lie in a GGUF file whose architecture is the model_type: as in Hugging Face's form,
    # or with the two halves of each head interleaved. None: there is no such architecture.
    gguf: Literal["plain", "interleaved"] | None = None


FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="llama", architecture="LlamaForCausalLM", gguf="interleaved"),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            qkv_bias=True,
            own_sizes=("num_key_value_heads",),
            gguf="plain",
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            qk_norm=True,
            own_sizes=("num_key_value_heads", "head_dim"),
            gguf="plain",
        ),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            own_sizes=("num_key_value_heads",),
            computes_as="llama",
            window=4096,
        ),
    )
}


def family_of(hf: dict[str, Any]) -> Family:
    """The family of an HF config. Raises ValueError for one outside the table."""
    model_type = hf.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"model_type is {model_type!r}; supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


def family_of_nemo(config: Mapping[str, Any], stated: Callable[[], str | None] = lambda: None) -> Family:
    """The family of a NeMo model_config.yaml, which names none: the one with its `qkv_bias` and `qk_layernorm`.

    Where several families have both, the key `model_type` of the yaml decides, then `stated`, which is called for what
    other files of the archive say, then whether all but one compute as that one does. Raises ValueError where no family
    or more than one is left.
    """
    traits = bool(config.get("qkv_bias")), bool(config.get("qk_layernorm"))
    fitting = {name: family for name, family in FAMILIES.items() if (family.qkv_bias, family.qk_norm) == traits}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    values = "qkv_bias is {} and qk_layernorm is {}".format(*(str(trait).lower() for trait in traits))
    if not fitting:
        both = "qkv_bias and qk_layernorm are both true" if all(traits) else values
        raise ValueError(f"{both}, which no supported family has")
    named = config.get("model_type") or stated()
    if isinstance(named, str) and named in fitting:
        return fitting[named]
    own = [family for family in fitting.values() if family.computes_as not in fitting]
    if named is None and len(own) == 1:
        return own[0]
    found = "" if named is None else f", and model_type {named!r} is none of them"
    raise ValueError(
        f"{values}, which several families have ({', '.join(fitting)}){found}; "
        "name one in the yaml as model_type, or start from the Hugging Face folder"
    )


def rope_type(hf: dict[str, Any]) -> str | None:
    """Kind of rotary scaling; "default" where there is none, None where the config does not name its kind.

    Older configs say `type` for `rope_type`.
    """
    scaling = hf.get("rope_scaling")
    return scaling.get("rope_type", scaling.get("type")) if scaling else "default"


def longest_sequence(hf: dict[str, Any]) -> int:
    """Tokens of the longest sequence that is trained: no more than the positions, nor than the attention window, within
    which full attention is what the model computes."""
    return min(hf["max_position_embeddings"], window_of(hf) or math.inf)


def window_of(hf: Mapping[str, Any]) -> int | None:
    """The attention window of a config in the form of transformers 4; None for full attention."""
    family = FAMILIES.get(hf.get("model_type", ""))
    return None if family is None or family.window is None else hf.get("sliding_window", family.window)


def window_of_megatron(settings: Mapping[str, Any]) -> int | None:
    """The sliding_window that is Megatron's window_size, which counts the tokens before one; None where it is no such
    window."""
    match settings.get("window_size"):
        case [int(left), int(right)] if left >= 0 and right in (0, -1):
            return left + 1
    return None


def for_transformers(hf: dict[str, Any]) -> dict[str, Any]:
    """The values from which either version builds the model that is trained: a default that they differ in is written
    out, and an attention window bounds the positions instead.

    Raises ValueError for keys that contradict each other.
    """
    values, problems = in_old_form(hf)
    if problems:
        raise ValueError("; ".join(problems))
    values = deepcopy(values)  # version 5 writes into the objects that it is given
    values["rope_theta"] = values.get("rope_theta") or DEFAULT_THETA
    if isinstance(window := window_of(values), int):
        values["max_position_embeddings"] = min(values.get("max_position_embeddings", window), window)
        values["sliding_window"] = None
    return values


def check_hf_config(hf: Any, where: object) -> dict[str, Any]:
    """The config in the form of transformers 4, whichever version wrote it.

    where: the file, for the message. Raises one ValueError that lists everything that the training model would not
    honour.
    """
    if not isinstance(hf, dict):
        raise ValueError(f"{where} holds no JSON object; fetch the model again.")
    try:
        hf, problems = in_old_form(hf)
        if (window := window_of(hf)) is not None:
            hf["sliding_window"] = window
        problems += [*_family_problems(hf), *_size_problems(hf), *_rope_problems(hf), *_layer_problems(hf)]
    except TypeError as error:  # a list where a word belongs
        problems = [f"a value is of the wrong kind ({error})"]
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems) + ".")
    return hf


def _family_problems(hf: dict[str, Any]) -> list[str]:
    try:
        family = family_of(hf)
    except ValueError as error:
        return [str(error)]
    problems = [f"{key} is missing" for key in family.own_sizes if key not in hf]
    # llama and qwen3 read it as a bias on the output projection too; qwen2 does not read it.
    if hf.get("attention_bias") and not family.qkv_bias:
        problems.append(f"attention_bias is not supported for {family.model_type}")
    return problems


def _not_positive(values: dict[str, Any], keys: Iterable[str], kind: type[int] | type[float] = int) -> list[str]:
    """Problems of the values of `keys`, each of which must be there and positive."""
    problems = []
    for key in keys:
        value = values.get(key)
        if key not in values:
            problems.append(f"{key} is missing")
        elif not isinstance(value, int | kind) or isinstance(value, bool) or not 0 < value < math.inf:
            problems.append(f"{key} is {value!r}, not a positive {'integer' if kind is int else 'number'}")
        elif value > _LARGEST.get(key, math.inf):
            problems.append(f"{key} is {value}, more than any model has")
    return problems


def _size_problems(hf: dict[str, Any]) -> list[str]:
    # These may be null or absent: one group a head, and the heads share out hidden_size.
    given = [key for key in ("num_key_value_heads", "head_dim") if hf.get(key) is not None]
    problems = _not_positive(hf, [*_SIZES, *given]) + _not_positive(hf, ["rms_norm_eps"], float)
    if problems:
        return problems
    heads, groups = hf["num_attention_heads"], hf.get("num_key_value_heads")
    if groups and heads % groups:
        problems.append(f"{heads} num_attention_heads are not divisible by {groups} num_key_value_heads")
    if not hf.get("head_dim") and hf["hidden_size"] % heads:
        problems.append(f"hidden_size {hf['hidden_size']} is not divisible by {heads} num_attention_heads")
    return problems


def _rope_problems(hf: dict[str, Any]) -> list[str]:
    problems = []
    if hf.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor {hf['partial_rotary_factor']} is not supported; only 1.0 is")
    if not isinstance(hf.get("rope_scaling") or {}, dict):
        return [*problems, f"rope_scaling is {hf['rope_scaling']!r}, not an object"]
    kind = rope_type(hf)
    if kind not in _ROPE_PARAMETERS:
        return [*problems, f"rope_scaling type {kind!r} is not supported; supported: {', '.join(_ROPE_PARAMETERS)}"]
    if hf.get("rope_theta") is not None:
        problems += _not_positive(hf, ["rope_theta"], float)
    found = _not_positive(hf.get("rope_scaling") or {}, _ROPE_PARAMETERS[kind], float)
    return problems + [f"rope_scaling of type {kind!r}: {problem}" for problem in found]


def _layer_problems(hf: dict[str, Any]) -> list[str]:
    problems = []
    if hf.get("use_sliding_window"):
        problems.append("use_sliding_window is true; set it to false to train with full attention")
    if window_of(hf) is not None:
        problems += _not_positive(hf, ["sliding_window"])
    if odd := sorted(set(hf.get("layer_types") or ()) - {"full_attention"}):
        problems.append(f"layer_types holds {', '.join(odd)}; only full_attention is supported")
    if hf.get("mlp_bias"):
        problems.append("mlp_bias is not supported")
    if hf.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act {hf['hidden_act']!r} is not supported; only silu is")
    if hf.get("quantization_config"):
        problems.append("quantization_config: quantized weights are not supported; take the original model")
    return problems
