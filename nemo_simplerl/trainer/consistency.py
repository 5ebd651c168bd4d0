"""The gate between rollout and training: is the policy that sampled the one that is trained?

Legend: B samples of this data rank, T predicted tokens.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_simplerl.algo.consistency import (
    beyond_bound,
    difference_metrics,
    difference_sums,
    importance_weights,
    weight_metrics,
    weight_sums,
)
from nemo_simplerl.config.schema import ConsistencyConfig, RolloutConfig
from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import all_reduce_metrics

log = logging.getLogger(__name__)

# Figures that judge the engine, whatever the age of the weights that it was given.
_OF_THE_ENGINE = ("logprob_diff_mean", "logprob_diff_max", "share_beyond")


@dataclass(frozen=True)
class GateResult:
    weights_BT: Tensor  # float32, a factor on what each token weighs in the policy loss
    metrics: dict[str, float]


@dataclass(frozen=True)
class ConsistencyGate:
    """Compares the log-probabilities of the engine with those of the trainer, and acts by rollout.consistency.

    old_logprobs: algo.old_logprobs, `trainer` or `engine`. probe_size: under `engine`, samples of this data rank that
    the trainer computes too, those of its first update. expects_difference: engine and trainer use different
    temperatures by choice, so that every token differs and that alone does not trip the gate.
    """

    config: ConsistencyConfig
    mesh: Mesh
    old_logprobs: str
    probe_size: int
    expects_difference: bool

    def choose_old_logprobs(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """float32 [B, T]: the policy's before the step's first update, from where algo.old_logprobs says. Collective.

        compute: the trainer's log-probabilities of a batch. Under `engine` it is asked for the probe alone, and the
        other rows are the engine's own; where the gate trips, and is not off, it is asked for all.
        """
        if self.old_logprobs == "trainer" or not self.mesh.is_member:
            return compute(batch)
        probe = batch.select(range(self._num_probed(batch)))
        mixed_BT = batch.engine_logprobs_BT.clone()
        mixed_BT[: len(probe)] = compute(probe)
        is_tripped = self._is_tripped(self._figures(batch, mixed_BT, torch.ones_like(mixed_BT)))
        return compute(batch) if is_tripped and self.config.policy != "off" else mixed_BT

    def check(
        self,
        batch: Batch,
        old_logprobs_BT: Tensor,
        step: int,
        *,
        is_older: bool = False,
        earlier_logprobs: Callable[[Batch], Tensor] | None = None,
    ) -> GateResult:
        """Compare, and weigh the tokens of the policy loss accordingly. Collective.

        Only the policy loss is touched: the critic, the whitening and the count that divides the loss see every token,
        so that leaving tokens out scales no other up. An EOS put over a sampled token is not compared and weighs 1.
        is_older: the samples are of weights before those that are trained. The engine is then judged by a probe, with
        `earlier_logprobs` of it, which the trainer computes under the weights that sampled; where it is None nobody has
        them, and only numbers that are not finite trip the gate. The weights are those of all tokens as ever.
        Raises RuntimeError under `stop`, on every rank.
        """
        if not self.mesh.is_member:
            return GateResult(torch.ones_like(old_logprobs_BT), {})
        config, mask_BT = self.config, self._compared_BT(batch)
        weights_BT = _weights(config, batch.engine_logprobs_BT, old_logprobs_BT, mask_BT)
        metrics = self._figures(batch, old_logprobs_BT, weights_BT)
        told = metrics
        if is_older:
            metrics = {name: value for name, value in metrics.items() if name not in _OF_THE_ENGINE}
            if earlier_logprobs is None:
                log.info(f"step {step}: the engine is not compared, since nobody has the weights that sampled any more")
            else:
                probe = batch.select(range(self._num_probed(batch)))
                of_probe = self._figures(probe, earlier_logprobs(probe), torch.ones_like(probe.mask_BT))
                metrics |= {name: of_probe[name] for name in _OF_THE_ENGINE}
                told = of_probe | {"not_finite": metrics["not_finite"]}
        is_tripped = self._is_tripped(metrics)
        if is_tripped and config.policy == "stop":
            raise RuntimeError(f"Step {step}: {_complaint(told, config)} {_way_out(told)}")
        if is_tripped and config.policy != "off":
            log.warning(f"step {step}: {_complaint(told, config)}")
        metrics["tripped"] = float(is_tripped)
        return GateResult(weights_BT, {f"consistency/{name}": value for name, value in metrics.items()})

    def _figures(self, batch: Batch, logprobs_BT: Tensor, weights_BT: Tensor) -> dict[str, float]:
        """How far the trainer's log-probabilities are from the engine's, and what the weights do."""
        config, mask_BT = self.config, self._compared_BT(batch)
        sums = difference_sums(batch.engine_logprobs_BT, logprobs_BT, mask_BT, config.max_difference)
        sums |= weight_sums(weights_BT, mask_BT, config.importance_cap)
        totals = all_reduce_metrics(sums, self.mesh.data)
        figures = difference_metrics(totals) | {"weight_mean": totals["weight"] / max(totals["tokens"], 1.0)}
        return figures | (weight_metrics(totals) if config.policy == "correct" else {})

    def _is_tripped(self, figures: Mapping[str, float]) -> bool:
        is_beyond = figures.get("share_beyond", 0.0) > self.config.max_share and not self.expects_difference
        return figures["not_finite"] > 0 or is_beyond

    def _compared_BT(self, batch: Batch) -> Tensor:
        """float32, 1 where the engine sampled a token that the trainer computed the log-probability of too."""
        mask_BT = batch.engine_mask_BT.clone()
        if self.old_logprobs == "engine":
            mask_BT[self._num_probed(batch) :] = 0.0
        return mask_BT

    def _num_probed(self, batch: Batch) -> int:
        """Samples of the probe: a sixteenth of this data rank's rollout at most."""
        return min(self.probe_size, -(-len(batch) // 16))


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


def sampling_notes(rollout: RolloutConfig) -> list[str]:
    """One message where top_p or top_k cut what is sampled, and so put it off the policy that is trained."""
    cuts = [f"rollout.top_p={rollout.top_p:g}"] * (rollout.top_p < 1) + [f"rollout.top_k={rollout.top_k}"] * (
        rollout.top_k > 0
    )
    if not cuts:
        return []
    return [
        f"{' and '.join(cuts)}: sampling is off-policy. Tokens are drawn from the most probable alone, while the "
        "trainer's log-probabilities, ratios and KL are over the whole vocabulary, and so are those that the "
        "consistency gate compares with the engine's: it does not see the cut. rollout.top_p=1 rollout.top_k=0 samples "
        "on-policy."
    ]
