"""How far the trainer's log-probabilities of a rollout are from those the engine sampled it with.

d = trainer - engine, in nats, of tokens that the engine sampled. Shapes: B sequences, T predicted tokens. `mask` is 1
where the engine sampled the token. A d that is not finite is beyond every bound, is counted, and enters no mean.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nemo_simplerl.algo.loss import Metrics


def beyond_bound(engine_logprobs_BT: Tensor, logprobs_BT: Tensor, mask_BT: Tensor, max_difference: float) -> Tensor:
    """bool [B, T]: the engine sampled the token and |d| is above the bound."""
    return (mask_BT > 0) & ~((logprobs_BT - engine_logprobs_BT).abs() <= max_difference)


def difference_sums(engine_logprobs_BT: Tensor, logprobs_BT: Tensor, mask_BT: Tensor, max_difference: float) -> Metrics:
    """The sums from which `difference_metrics` computes. A key ending in `_max` combines by maximum, others by sum."""
    is_sampled_BT, difference_BT = mask_BT > 0, (logprobs_BT - engine_logprobs_BT).double()
    is_known_BT = is_sampled_BT & difference_BT.isfinite()
    is_beyond_BT = beyond_bound(engine_logprobs_BT, logprobs_BT, mask_BT, max_difference)
    difference_BT = torch.where(is_known_BT, difference_BT, 0.0)
    return {
        "tokens": is_sampled_BT.sum(),
        "known_tokens": is_known_BT.sum(),
        "tokens_beyond": is_beyond_BT.sum(),
        "difference": difference_BT.sum(),
        "distance": difference_BT.abs().sum(),
        "distance_max": difference_BT.abs().max(),
        "k3": (torch.expm1(difference_BT) - difference_BT).sum(),
    }


def difference_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a whole rollout from its `difference_sums`; the means are NaN where no d is finite.

    `kl_k3` estimates KL(engine || trainer), the mean of exp(d) - 1 - d (Schulman 2020, "Approximating KL
    Divergence"); `perplexity_ratio` is the trainer's perplexity over the engine's; `share_beyond` the share of tokens
    with |d| above the bound; `not_finite` the number of tokens whose d is not finite.
    """
    tokens, known = sums["tokens"], sums["known_tokens"]
    mean = {name: sums[name] / known if known else float("nan") for name in ("difference", "distance", "k3")}
    return {
        "logprob_diff_mean": mean["distance"],
        "logprob_diff_max": sums["distance_max"],
        "kl_k3": mean["k3"],
        # A tensor's exp overflows to infinity where math.exp raises.
        "perplexity_ratio": float(torch.tensor(-mean["difference"], dtype=torch.float64).exp()),
        "share_beyond": sums["tokens_beyond"] / max(tokens, 1.0),
        "not_finite": tokens - known,
    }


def importance_weights(engine_logprobs_BT: Tensor, logprobs_BT: Tensor, mask_BT: Tensor, cap: float) -> Tensor:
    """float32 [B, T], detached: min(exp(d), cap) where the engine sampled the token, 1 elsewhere.

    Truncated importance sampling (Ionides 2008, "Truncated Importance Sampling"), a token at a time as in RL
    post-training (Yao 2025, "On the Rollout-Training Mismatch in Modern RL Systems"): it takes the gradient's
    expectation from the engine's policy to the trainer's. 0 where d is not finite, which leaves the token out.
    """
    difference_BT = (logprobs_BT - engine_logprobs_BT).detach()
    weights_BT = torch.where(difference_BT.isfinite(), difference_BT.exp().clamp(max=cap), 0.0)
    return torch.where(mask_BT > 0, weights_BT, 1.0).float()


def weight_sums(weights_BT: Tensor, mask_BT: Tensor, cap: float) -> Metrics:
    """The sums from which `weight_metrics` computes."""
    is_sampled_BT = mask_BT > 0
    sampled_BT = torch.where(is_sampled_BT, weights_BT, 0.0).double()
    return {
        "weight": sampled_BT.sum(),
        "squared_weight": sampled_BT.square().sum(),
        "weights_capped": (is_sampled_BT & (weights_BT >= cap)).sum(),
    }


def weight_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """What `importance_weights` do to a whole rollout of `sums["tokens"]` tokens, from its `weight_sums`.

    `weight_capped_share` is the share of tokens whose weight the cap bounds. `effective_sample_size` is
    (sum w)^2 / sum w^2 (Kish 1965, "Survey Sampling"), as a share of the tokens: 1 where all weigh the same.
    """
    tokens = max(sums["tokens"], 1.0)
    squares = sums["squared_weight"]
    return {
        "weight_capped_share": sums["weights_capped"] / tokens,
        "effective_sample_size": sums["weight"] ** 2 / squares / tokens if squares else 0.0,
    }
