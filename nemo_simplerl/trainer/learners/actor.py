"""The policy: log-probabilities, reference log-probabilities, PPO updates, and its weights for the engine.

Legend: B samples of this data rank, S sequence length, T = S - 1 predicted tokens, H hidden size.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from nemo_simplerl.algo.kl import kl_loss
from nemo_simplerl.algo.loss import Metrics, PolicyObjective, policy_loss, positive_nll
from nemo_simplerl.config.schema import ActorConfig, AlgoConfig
from nemo_simplerl.data.batch import Batch, MicroBatch
from nemo_simplerl.data.packing import unpack_to_batch
from nemo_simplerl.model.network import head
from nemo_simplerl.model.sharding.export import HfExport, hf_buckets
from nemo_simplerl.trainer.learners.host_memory import HostWeights
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.minibatches import MiniBatch, forward_micro_batches, mini_batches
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.logging.timing import PhaseTimer, timed

Result = TypeVar("Result")


class Actor:
    """Every method is collective over the world. `hf` is the model's Hugging Face config.

    keeps_earlier: whether the weights before a step's updates stay in host memory during the step after it.
    """

    def __init__(
        self,
        learner: Learner,
        hf: dict,
        config: ActorConfig,
        algo: AlgoConfig,
        *,
        temperature: float,
        max_response_tokens: int,
        timer: PhaseTimer,
        update_loop: UpdateLoop | None = None,
        keeps_earlier: bool = False,
    ):
        self.learner, self.hf, self.config, self.algo, self.timer = learner, hf, config, algo, timer
        self.update_loop = update_loop or UpdateLoop()
        self.max_response_tokens, self.objective = max_response_tokens, objective_of(algo)
        self.temperature = temperature if algo.logprob_temperature == "sampling" else 1.0
        self._reference = HostWeights(learner.gpt) if algo.kl_coef else None
        self._earlier = HostWeights(learner.gpt) if keeps_earlier else None
        self.has_earlier = False

    @timed("old_logprobs")
    def logprobs(self, batch: Batch) -> Tensor:
        """float32 [B, T]: log pi(token | prefix) at the sampling temperature, 0 outside the response."""
        return self._forward(batch)

    @timed("reference_logprobs")
    def reference_logprobs(self, batch: Batch) -> Tensor:
        """The same under the policy that training started from, whose weights are kept in host memory."""
        assert self._reference is not None, "no reference is kept when algo.kl_coef is 0"
        with self._reference.in_place():
            return self._forward(batch)

    @timed("old_logprobs")
    def earlier_logprobs(self, batch: Batch) -> Tensor:
        """The same under the policy before the last step's updates; call it where `has_earlier`."""
        assert self._earlier is not None and self.has_earlier
        with self._earlier.in_place():
            return self._forward(batch)

    @timed("actor_update")
    def update(
        self,
        batch: Batch,
        old_logprobs_BT: Tensor,
        ref_logprobs_BT: Tensor,
        advantages_BT: Tensor,
        gate_weights_BT: Tensor,
    ) -> list[dict[str, float]]:
        """PPO updates over the rollout, mini-batch by mini-batch. Returns the metrics of each.

        `ref_logprobs_BT` is read where the loss has a KL term. `gate_weights_BT` multiplies the weight of each token in
        every term of the loss and in its metrics; the counts that divide them stay those of the whole update. Raises
        RuntimeError when the ratio at the first update is further from 1 than algo.ratio_tolerance.
        """
        algo = self.algo
        columns = {"ref_logprobs_BT": ref_logprobs_BT} if algo.kl_coef_of_loss else {}
        minis = mini_batches(
            batch,
            self.config,
            aggregation=algo.loss_aggregation,
            max_tokens=self.max_response_tokens,
            epochs=algo.ppo_epochs,
            mesh=self.learner.mesh,
            weigh_correct=algo.positive_nll_coef > 0,
            old_logprobs_BT=old_logprobs_BT,
            advantages_BT=advantages_BT,
            gate_weights_BT=gate_weights_BT,
            **columns,
        )
        if self._earlier is not None:
            self.has_earlier = self.update_loop.num_finished == 0  # else some of the step's updates are in the weights
            if self.has_earlier:
                self._earlier.keep()
        with self.learner.optimizer_on_device():
            return self.update_loop.run(minis, self._update)

    def hf_buckets(self, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """Full weights under Hugging Face names; every rank must consume all buckets, using each before the next."""
        return hf_buckets(self.learner.gpt, self.hf, self.learner.mesh, max_bytes)

    def export(self, max_bytes: int) -> HfExport:
        """The same weights for engines on other ranks: see HfExport."""
        return HfExport(self.learner.gpt, self.hf, self.learner.mesh, max_bytes)

    def _forward(self, batch: Batch) -> Tensor:
        micro_batches = forward_micro_batches(batch, self.config)
        results = self.learner.forward_only(micro_batches, partial(self._head, head.logprobs))
        return unpack_to_batch(results, micro_batches, batch.mask_BT)

    def _update(self, mini: MiniBatch, is_first: bool) -> dict[str, float]:
        metrics = self.learner.update(mini, self._loss)
        if is_first and not metrics["skipped"]:
            self._require_ratio_one(metrics["ratio_deviation_max"])
        return metrics

    def _loss(self, hidden_SBH: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
        """The micro-batch's share of the update's loss. A term whose coefficient is 0 is not computed."""
        algo, columns = self.algo, micro.columns
        logprobs_BT, entropy_BT = self._head(head.logprobs_entropy, hidden_SBH, micro)
        gate_BT, old_logprobs_BT = columns["gate_weights_BT"], columns["old_logprobs_BT"]
        weights_BT = shares_BT = columns["weights_BT"] * gate_BT
        if "metric_weights_BT" in columns:
            shares_BT = columns["metric_weights_BT"] * gate_BT
        loss, metrics = policy_loss(
            logprobs_BT,
            old_logprobs_BT,
            columns["advantages_BT"],
            entropy_BT,
            weights_BT,
            self.objective,
            micro.sequences_BT if algo.ratio_level == "sequence" else None,
            shares_BT,
        )
        if algo.kl_coef_of_loss:
            kl_of = partial(
                kl_loss,
                logprobs_BT,
                columns["ref_logprobs_BT"],
                old_logprobs_BT,
                estimator=algo.kl_estimator,
                importance_weight=algo.kl_importance_weight,
            )
            loss = loss + algo.kl_coef_of_loss * kl_of(weights_BT)
            with torch.no_grad():
                metrics["kl_loss"] = kl_of(shares_BT)
        if algo.positive_nll_coef:
            nll = positive_nll(logprobs_BT, columns["correct_weights_BT"] * gate_BT)
            loss, metrics["positive_nll"] = loss + algo.positive_nll_coef * nll, nll.detach()
        return loss, metrics

    def _head(self, compute: Callable[..., Result], hidden_SBH: Tensor, micro: MicroBatch) -> Result:
        return compute(
            self.learner.gpt,
            hidden_SBH,
            micro,
            self.learner.mesh,
            vocab_size=self.hf["vocab_size"],
            temperature=self.temperature,
            fp32=self.algo.logprob_precision == "fp32",
        )

    def _require_ratio_one(self, deviation: float) -> None:
        tolerance = self.algo.ratio_tolerance
        if tolerance is not None and not deviation <= tolerance:
            raise RuntimeError(
                f"At a step's first update the policy has not moved, yet |ratio - 1| reached {deviation:.3g} "
                f"(algo.ratio_tolerance={tolerance:g}): the passes before and during the update disagree, or, "
                "under algo.old_logprobs=engine, engine and trainer. Check the precision, or raise the tolerance (null "
                "only reports it) where bf16 rounding explains the gap."
            )


def objective_of(algo: AlgoConfig) -> PolicyObjective:
    """The part of the policy's loss that the settings of `algo` by the same names choose."""
    return PolicyObjective(**{field.name: getattr(algo, field.name) for field in fields(PolicyObjective)})
