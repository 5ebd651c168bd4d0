"""Drawing tokens. Each sample has its own counter-based random stream: no draw depends on its batch.

Shapes: B rows, T steps, V vocabulary ids.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], num_steps: int) -> np.ndarray:
    """Draws u[b, t] = f(seeds[b], t), float64 [B, T] in [0, 1) with 53 random bits.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") started from the
    hash of the seed, so that neighbouring seeds are far apart in the sequence. Seeds are taken modulo 2**64.
    """
    keys_B1 = _mix(np.array([seed & _MASK64 for seed in seeds], dtype=np.uint64).reshape(-1, 1) + _GAMMA)
    counters_T = np.arange(1, num_steps + 1, dtype=np.uint64) * _GAMMA
    return (_mix(keys_B1 + counters_T) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def filter_probs(probs_BV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Probabilities with every token outside the top-k, then outside the nucleus, set to 0. Not renormalised.

    The nucleus is the smallest set of most probable tokens whose share of what top-k kept reaches `top_p`
    (Holtzman 2020, arXiv:1904.09751); it holds at least one token. Among equals the lower id ranks first.
    """
    if not top_k and top_p >= 1.0:
        return probs_BV
    sorted_BV, ids_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    if top_k:
        sorted_BV[:, top_k:] = 0.0
    if top_p < 1.0:
        reached_BV = sorted_BV.cumsum(-1, dtype=torch.float64)
        before_BV = reached_BV - sorted_BV
        sorted_BV = sorted_BV.masked_fill(before_BV >= top_p * reached_BV[:, -1:], 0.0)
    return torch.zeros_like(probs_BV).scatter_(-1, ids_BV, sorted_BV)


def inverse_cdf(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first id at which the cumulative probability passes `uniform_B` of the total: int64 [B].

    `probs_BV` need not sum to 1; sums are float64. An id of probability 0 is never drawn.
    """
    cdf_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    total_B = cdf_BV[:, -1]
    # The product may round up to the total, which no cumulative sum passes.
    target_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(cdf_BV, target_B[:, None], right=True)[:, 0]


def sample(
    logits_BV: Tensor,
    uniform_B: Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    vocab_limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row: int64 [B], and its log-probability, float32 [B], in nats over the full vocabulary.

    The log-probability is that of logits / temperature before any filter, of the raw logits at temperature 0.
    Ids from `vocab_limit` on are never drawn.
    """
    logits_BV = logits_BV.float()
    if temperature not in (0.0, 1.0):
        logits_BV = logits_BV / temperature
    logprobs_BV = logits_BV.log_softmax(-1)
    if temperature == 0.0:
        tokens_B = logits_BV[:, :vocab_limit].argmax(-1)  # the first of equals
    else:
        probs_BV = filter_probs(logprobs_BV[:, :vocab_limit].exp(), top_k=top_k, top_p=top_p)
        tokens_B = inverse_cdf(probs_BV, uniform_B)
    return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None])[:, 0]
