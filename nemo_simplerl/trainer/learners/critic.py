"""The critic: values of states and their updates.

Legend: B samples of this data rank, S sequence length, T = S - 1 predicted tokens, H hidden size.
"""

from torch import Tensor

from nemo_simplerl.algo.loss import Metrics, value_loss
from nemo_simplerl.config.schema import AlgoConfig, CriticConfig
from nemo_simplerl.data.batch import Batch, MicroBatch
from nemo_simplerl.data.packing import unpack_to_batch
from nemo_simplerl.model.network import head
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.minibatches import MiniBatch, forward_micro_batches, mini_batches
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.logging.timing import PhaseTimer, timed


class Critic:
    """Every method is collective over the world."""

    def __init__(
        self,
        learner: Learner,
        config: CriticConfig,
        algo: AlgoConfig,
        *,
        max_response_tokens: int,
        timer: PhaseTimer,
        update_loop: UpdateLoop | None = None,
    ):
        self.learner, self.config, self.algo, self.timer = learner, config, algo, timer
        self.max_response_tokens, self.update_loop = max_response_tokens, update_loop or UpdateLoop()

    @timed("values")
    def values(self, batch: Batch) -> Tensor:
        """float32 [B, T]: the value of the state before each token is emitted, 0 outside the response."""
        micro_batches = forward_micro_batches(batch, self.config)
        results = self.learner.forward_only(micro_batches, self._values)
        return unpack_to_batch(results, micro_batches, batch.mask_BT) * batch.mask_BT

    @timed("critic_update")
    def update(self, batch: Batch, old_values_BT: Tensor, returns_BT: Tensor) -> list[dict[str, float]]:
        """Updates over the rollout, mini-batch by mini-batch. Returns the metrics of each."""
        minis = mini_batches(
            batch,
            self.config,
            aggregation=self.algo.loss_aggregation,
            max_tokens=self.max_response_tokens,
            epochs=self.algo.ppo_epochs,
            mesh=self.learner.mesh,
            old_values_BT=old_values_BT,
            returns_BT=returns_BT,
        )
        with self.learner.optimizer_on_device():
            return self.update_loop.run(minis, self._update)

    def _update(self, mini: MiniBatch, is_first: bool) -> dict[str, float]:
        return self.learner.update(mini, self._loss)

    def _loss(self, hidden_SBH: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
        return value_loss(
            self._values(hidden_SBH, micro),
            micro.columns["old_values_BT"],
            micro.columns["returns_BT"],
            micro.columns["weights_BT"],
            value_clip=self.algo.value_clip,
            metric_weights_BT=micro.columns.get("metric_weights_BT"),
        )

    def _values(self, hidden_SBH: Tensor, micro: MicroBatch) -> Tensor:
        return head.values(self.learner.gpt, hidden_SBH, micro)
