"""Frequencies of the rotary position embedding."""

import math

import torch
from torch import Tensor

from nemo_simplerl.config.families import rope_type
from nemo_simplerl.config.hf_config import DEFAULT_THETA
from nemo_simplerl.model.hf_map import heads_of


def rope_frequencies(hf: dict) -> Tensor:
    """Rotation of each pair of a head's channels in radians a position: float32 [head_dim / 2].

    Megatron's own Llama 3 scaling fixes all parameters but the factor, so the frequencies are computed here. Bit for
    bit those of transformers (modeling_rope_utils.py), which the rollout engine runs.
    """
    size, scaling = heads_of(hf).head_dim, hf.get("rope_scaling")
    frequencies = 1.0 / ((hf.get("rope_theta") or DEFAULT_THETA) ** (torch.arange(0, size, 2).float() / size))
    kind = rope_type(hf)
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    assert kind == "default", "families.check_hf_config refuses other kinds"
    return frequencies


def _llama3(frequencies: Tensor, scaling: dict) -> Tensor:
    """Frequencies under Llama 3's scaling: waves that are long beside the original context are slowed by `factor`,
    short ones are left, those between are interpolated ("The Llama 3 Herd of Models", section 3.4.2; the formula is
    from Meta's reference code)."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    smooth = (context / wavelengths - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    slowed = torch.where(wavelengths > context / low, frequencies / factor, between)
    return torch.where(wavelengths < context / high, frequencies, slowed)
