"""The policy: log-probabilities, reference log-probabilities, PPO updates, and its weights for the engine.

Legend: B samples of this data rank, T predicted tokens (sequence length - 1), V/TP vocabulary rows of a tensor rank.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nemo_simplerl.algo.loss import policy_loss, token_weights
from nemo_simplerl.config.schema import ActorConfig, AlgoConfig
from nemo_simplerl.data.batch import Batch
from nemo_simplerl.model.export import hf_stream
from nemo_simplerl.parallel.vocab import vocab_parallel_logprob_entropy
from nemo_simplerl.trainer.learner import Learner
from nemo_simplerl.trainer.minibatches import global_counts, mini_batches, padded_rows


class Actor:
    """Every method is collective over the world."""

    def __init__(self, learner: Learner, hf: dict, config: ActorConfig, algo: AlgoConfig, *, temperature: float):
        self.learner, self.hf, self.config, self.algo = learner, hf, config, algo
        self.temperature = temperature if algo.logprob_temperature == "sampling" else 1.0
        self._reference = _copy_to_host(learner.gpt) if algo.kl_coef else None

    def logprobs(self, batch: Batch) -> Tensor:
        """float32 [B, T]: log pi(token | prefix) at the sampling temperature, 0 outside the response."""
        rows = self.learner.forward_only(batch.micro_batches(self.config.forward_micro_batch_size), self._logprob_head)
        return padded_rows(rows, batch.mask_BT.shape[1]) * batch.mask_BT

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """The same under the policy that training started from, whose weights wait in host memory."""
        assert self._reference is not None, "no reference is kept when algo.kl_coef is 0"
        self._swap_reference()
        try:
            return self.logprobs(batch)
        finally:
            self._swap_reference()

    def update(self, batch: Batch, old_logprobs_BT: Tensor, advantages_BT: Tensor) -> list[dict[str, float]]:
        """PPO updates over the rollout, mini-batch by mini-batch; metrics of each in order."""
        data = {"old_logprobs_BT": old_logprobs_BT, "advantages_BT": advantages_BT}
        history = []
        for mini in mini_batches(batch, data, self.config.global_batch_size, self.algo.ppo_epochs, self.learner.mesh):
            counts = global_counts(mini, self.learner.mesh)
            metrics = self.learner.update(
                mini.micro_batches(self.config.micro_batch_size), lambda output, micro, counts=counts: self._loss(output, micro, counts)
            )
            history.append(metrics)
            if len(history) == 1:
                self._check_first_ratio(metrics["ratio_deviation_max"])
        return history
