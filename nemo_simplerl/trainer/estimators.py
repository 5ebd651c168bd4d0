"""How advantages are estimated, and what is trained for it. An estimator is a value: ppo_step does not ask which it is.

Legend: B samples of this data rank, T predicted tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nemo_simplerl.algo.gae import gae
from nemo_simplerl.config.schema import AlgoConfig
from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.logging.metrics import estimate_metrics, update_metrics
from nemo_simplerl.trainer.saving.step_state import StepState, kept_in_step


@dataclass(frozen=True)
class Estimate:
    advantages_BT: Tensor  # float32, before whitening
    returns_BT: Tensor  # float32, what a critic is fitted to
    columns_BT: dict[str, Tensor]  # what the estimator's own models computed, by name
    metrics: dict[str, float]


class Estimator(Protocol):
    """Estimates advantages from token rewards and trains the models it needs for that. All ranks call alike.

    learners and update_loops: those models by role, to be saved, resumed and stopped between updates like the actor.
    """

    learners: Mapping[str, Learner]
    update_loops: Mapping[str, UpdateLoop]

    def estimate(self, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """The advantage of every response token under the models from before the step's first update. Collective."""

    def update(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """Train the estimator's models on the rollout. Returns metrics, none where it has no models. Collective."""


class GaeWithCritic:
    """Generalised advantage estimation over the values of a critic (arXiv:1506.02438)."""

    def __init__(self, critic: Critic, algo: AlgoConfig, mesh: Mesh, step_state: StepState):
        self.critic, self.algo, self.mesh, self.step_state = critic, algo, mesh, step_state
        self.learners = {"critic": critic.learner}
        self.update_loops = {"critic": critic.update_loop}

    @kept_in_step("values")
    def values(self, batch: Batch) -> Tensor:
        """float32 [B, T]: the critic's values from before the step's first update. Collective."""
        return self.critic.values(batch)

    def estimate(self, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """See Estimator.estimate."""
        values_BT, algo = self.values(batch), self.algo
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, batch.mask_BT, gamma=algo.gamma, lam=algo.gae_lambda)
        metrics = estimate_metrics(batch.mask_BT, values_BT, advantages_BT, returns_BT, self.mesh.data)
        return Estimate(advantages_BT, returns_BT, {"values": values_BT}, metrics)

    def update(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """See Estimator.update."""
        values_BT = estimate.columns_BT["values"]
        return update_metrics("critic", self.critic.update(batch, values_BT, estimate.returns_BT))


def build_estimator(
    algo: AlgoConfig, mesh: Mesh, step_state: StepState, build_critic: Callable[[], Critic]
) -> Estimator:
    """The estimator of a run. One without a critic does not call `build_critic`, and none is built. Collective."""
    return GaeWithCritic(build_critic(), algo, mesh, step_state)
