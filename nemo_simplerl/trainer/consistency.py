"""The gate between rollout and training: is the policy that sampled the one that is trained?

Legend: B samples of this data rank, T predicted tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nemo_simplerl.algo.consistency import beyond_bound, difference_metrics, difference_sums, importance_weights
from nemo_simplerl.config.schema import ConsistencyConfig
from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.reductions import all_reduce_metrics
from nemo_simplerl.trainer.roles import Roles


@dataclass(frozen=True)
class Gate:
    weights_BT: Tensor  # float32, a factor on what each token weighs in the policy loss
    metrics: dict[str, float]


def consistency_gate(batch: Batch, old_logprobs_BT: Tensor, roles: Roles, step: int) -> Gate:
    """Compare the engine's log-probabilities with the trainer's and act by rollout.consistency. Collective.

    Only the policy loss is touched: the critic, the whitening and the count that divides the loss see every token, so
    that leaving tokens out scales no other up. An EOS put over a sampled token is not compared and weighs 1. Raises
    RuntimeError under `stop`, on every rank.
    """
    config = roles.config.rollout.consistency
    compared = (batch.engine_logprobs_BT, old_logprobs_BT, _compared_BT(batch, roles))
    weights_BT = _weights(config, *compared)
    figures = _figures(batch, old_logprobs_BT, weights_BT, roles)
    is_tripped = bool(figures["tripped"])
    if is_tripped and config.policy == "stop":
        raise RuntimeError(f"Step {step}: {_complaint(figures, config)} {_way_out(figures)}")
    if is_tripped and config.policy != "off":
        roles.say(f"step {step}: {_complaint(figures, config)}")
    return Gate(weights_BT, {f"consistency/{name}": value for name, value in figures.items()})


def old_logprobs(batch: Batch, roles: Roles) -> Tensor:
    """float32 [B, T]: the policy's before the step's first update, from where algo.old_logprobs says. Collective.

    Under `engine` the trainer computes those of a probe, samples of the first update, which the gate compares; the
    others are the engine's own. Where the gate trips, and is not off, the trainer computes them all.
    """
    compute = roles.actor.logprobs if roles.config.algo.old_logprobs == "trainer" else partial(_mixed, roles=roles)
    return roles.column("old_logprobs", batch, compute)


def _mixed(batch: Batch, roles: Roles) -> Tensor:
    probe = batch.select(range(_probed_rows(batch, roles)))
    mixed_BT = batch.engine_logprobs_BT.clone()
    mixed_BT[: len(probe)] = roles.actor.logprobs(probe)
    tripped = _figures(batch, mixed_BT, torch.ones_like(mixed_BT), roles)["tripped"]
    is_refused = tripped and roles.config.rollout.consistency.policy != "off"
    return roles.actor.logprobs(batch) if is_refused else mixed_BT


def _figures(batch: Batch, old_logprobs_BT: Tensor, weights_BT: Tensor, roles: Roles) -> dict[str, float]:
    config, mask_BT = roles.config.rollout.consistency, _compared_BT(batch, roles)
    sums = difference_sums(batch.engine_logprobs_BT, old_logprobs_BT, mask_BT, config.max_difference)
    totals = all_reduce_metrics(sums | {"weight": (weights_BT * mask_BT).sum()}, roles.mesh.data)
    figures = difference_metrics(totals) | {"weight_mean": totals["weight"] / max(totals["tokens"], 1.0)}
    # Sampled at one temperature and trained at another, as chosen: every token differs, and that is no news.
    is_chosen = roles.config.algo.logprob_temperature == "one" and roles.sampling.temperature != 1.0
    is_tripped = figures["not_finite"] > 0 or (figures["share_beyond"] > config.max_share and not is_chosen)
    return figures | {"tripped": float(is_tripped)}


def _compared_BT(batch: Batch, roles: Roles) -> Tensor:
    """float32, 1 where the engine sampled a token that the trainer computed the log-probability of too."""
    mask_BT = batch.engine_mask_BT.clone()
    if roles.config.algo.old_logprobs == "engine":
        mask_BT[_probed_rows(batch, roles) :] = 0.0
    return mask_BT


def _probed_rows(batch: Batch, roles: Roles) -> int:
    """This data rank's samples of the step's first update, a sixteenth of its rollout at most."""
    return min(roles.config.actor.global_batch_size // roles.mesh.dp_size, -(-len(batch) // 16))


def _weights(config: ConsistencyConfig, engine_BT: Tensor, trainer_BT: Tensor, mask_BT: Tensor) -> Tensor:
    if config.policy == "mask":
        return (~beyond_bound(engine_BT, trainer_BT, mask_BT, config.max_difference)).float()
    if config.policy == "correct":
        return importance_weights(engine_BT, trainer_BT, mask_BT, config.importance_cap)
    return torch.ones_like(mask_BT)


def _complaint(figures: Mapping[str, float], config: ConsistencyConfig) -> str:
    unknown = f" {figures['not_finite']:.0f} have no finite one." if figures["not_finite"] else ""
    return (
        "the engine's log-probabilities and the trainer's differ by more than "
        f"rollout.consistency.max_difference={config.max_difference:g} nats on {figures['share_beyond']:.2%} of the "
        f"sampled tokens (max_share={config.max_share:g}); |difference| is {figures['logprob_diff_mean']:.3g} in the "
        f"mean and {figures['logprob_diff_max']:.3g} at most, KL {figures['kl_k3']:.3g}.{unknown} Likely causes: the "
        "engine holds stale weights, samples at another temperature, or computes in another precision."
    )


def _way_out(figures: Mapping[str, float]) -> str:
    if figures["not_finite"]:
        return "A log-probability that is not finite has no remedy here: look at the engine's weights and logits."
    return (
        "Where precision explains it, raise rollout.consistency.max_share (a resumed run accepts that), or begin "
        "another run with rollout.consistency.policy=correct."
    )
