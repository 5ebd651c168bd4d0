"""How advantages are estimated, and what is trained for it. An estimator is a value: ppo_step does not ask which it is.

Legend: B samples of this data rank, T predicted tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from nemo_simplerl.algo.advantages import (
    equal_groups_share,
    group_advantages,
    leave_one_out_advantages,
    masked_moments,
    rewards_to_go,
)
from nemo_simplerl.algo.gae import gae, length_adaptive_lambda
from nemo_simplerl.config.schema import AlgoConfig
from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.logging.metrics import advantage_metrics, estimate_metrics, update_metrics
from nemo_simplerl.trainer.saving.step_state import StepState, kept_in_step
from nemo_simplerl.trainer.shares import Travel


@dataclass(frozen=True)
class Estimate:
    advantages_BT: Tensor  # float32, before whitening
    returns_BT: Tensor  # float32, what a critic is fitted to; without one nobody reads it
    columns_BT: dict[str, Tensor]  # what the estimator's own models computed, by name
    metrics: dict[str, float]


class Estimator(Protocol):
    """Estimates advantages from token rewards and trains the models it needs for that. All ranks call alike.

    learners and update_loops: those models by role, to be saved, resumed and stopped between updates like the actor.
    """

    learners: Mapping[str, Learner]
    update_loops: Mapping[str, UpdateLoop]

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """The advantage of every response token under the models from before the step's first update. Collective."""

    def update(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """Train the estimator's models on the rollout. Returns metrics, none where it has no models. Collective."""


class GaeWithCritic:
    """Generalised advantage estimation over the values of a critic (arXiv:1506.02438).

    The returns that the critic is fitted to may have a lambda of their own (VC-PPO, arXiv:2503.01491), and another one
    in the first steps, which train the critic alone.

    mesh: the actor's, whose data ranks the batches are of. travel: between those and the critic's.
    """

    def __init__(self, critic: Critic, algo: AlgoConfig, mesh: Mesh, step_state: StepState, travel: Travel):
        self.critic, self.algo, self.mesh, self.step_state, self.travel = critic, algo, mesh, step_state, travel
        self.learners = {"critic": critic.learner}
        self.update_loops = {"critic": critic.update_loop}

    @kept_in_step("values")
    def values(self, batch: Batch) -> Tensor:
        """float32 [B, T]: the critic's values from before the step's first update. Collective."""
        critics = self.travel.batch(batch)
        return self.travel.back(self.critic.values(critics), critics, batch)

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """See Estimator.estimate."""
        self.travel.begin(self.step_state.lengths, step)
        values_BT, lam = self.values(batch), self._lambda(batch)
        estimate_by = partial(gae, rewards_BT, values_BT, batch.mask_BT, gamma=self.algo.gamma)
        advantages_BT, returns_BT = estimate_by(lam=lam)
        if (critic_lambda := self._critic_lambda(step)) is not None:
            _, returns_BT = estimate_by(lam=critic_lambda)
        metrics = estimate_metrics(batch.mask_BT, values_BT, advantages_BT, returns_BT, self.mesh.data)
        if isinstance(lam, Tensor):
            lam_BT = lam.expand_as(batch.mask_BT)
            metrics["critic/lambda_mean"] = float(masked_moments(lam_BT, batch.mask_BT, self.mesh.data)[0])
        return Estimate(advantages_BT, returns_BT, {"values": values_BT}, metrics)

    def update(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """See Estimator.update."""
        critics = self.travel.batch(batch)
        values_BT, returns_BT = (
            self.travel.there(column_BT, batch, critics)
            for column_BT in (estimate.columns_BT["values"], estimate.returns_BT)
        )
        return update_metrics("critic", self.critic.update(critics, values_BT, returns_BT))

    def _lambda(self, batch: Batch) -> float | Tensor:
        """Lambda of the advantages: a number, or one for each response [B, 1]."""
        alpha = self.algo.gae_length_alpha
        return self.algo.gae_lambda if alpha is None else length_adaptive_lambda(batch.mask_BT, alpha)

    def _critic_lambda(self, step: int) -> float | None:
        """Lambda of the returns; None where it is that of the advantages."""
        algo = self.algo
        if step <= algo.critic_warmup_steps and algo.critic_warmup_lambda is not None:
            return algo.critic_warmup_lambda
        return algo.gae_lambda_critic


class NoModels:
    """The part of an estimator that trains nothing: the actor alone is built, saved and updated."""

    learners: Mapping[str, Learner] = {}
    update_loops: Mapping[str, UpdateLoop] = {}

    def update(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """See Estimator.update."""
        return {}


class GroupBaseline(NoModels):
    """Each response's reward above that of the other responses to its prompt, the same for all of its tokens.

    compare: (rewards [B], groups_B, num_groups, group=) -> advantages [B], a function of algo.advantages.

    A KL penalty in the rewards is summed over the response first, as in verl and TRL: the comparison then takes the
    mean of the penalty off as well. Taken off each token afterwards, as OpenRLHF does, it would push down every token
    of a policy that has moved, the first ones of a response most.
    """

    def __init__(self, compare: Callable[..., Tensor], num_groups: int, mesh: Mesh):
        self.compare, self.num_groups, self.mesh = compare, num_groups, mesh

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """See Estimator.estimate."""
        groups = (batch.groups_B, self.num_groups)
        advantages_B = self.compare(rewards_BT.double().sum(dim=1), *groups, group=self.mesh.data)
        advantages_BT = advantages_B[:, None] * batch.mask_BT
        metrics = advantage_metrics(batch.mask_BT, advantages_BT, self.mesh.data)
        metrics["advantage/equal_groups_share"] = float(equal_groups_share(batch.scores_B, *groups, self.mesh.data))
        return Estimate(advantages_BT, advantages_BT, {}, metrics)


class RewardsToGo(NoModels):
    """The reward from each token on, KL penalty included, without a baseline: whitening over the rollout is REINFORCE++
    (arXiv:2501.03262)."""

    def __init__(self, gamma: float, mesh: Mesh):
        self.gamma, self.mesh = gamma, mesh

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """See Estimator.estimate."""
        advantages_BT = rewards_to_go(rewards_BT, batch.mask_BT, self.gamma)
        metrics = advantage_metrics(batch.mask_BT, advantages_BT, self.mesh.data)
        return Estimate(advantages_BT, advantages_BT, {}, metrics)


def build_estimator(
    algo: AlgoConfig,
    num_prompts: int,
    mesh: Mesh,
    step_state: StepState,
    build_critic: Callable[[], tuple[Critic, Travel]],
) -> Estimator:
    """The estimator of a run with `num_prompts` prompts a step, on the actor's mesh. Collective.

    One without a critic does not call `build_critic`, and none is built.
    """
    if algo.advantage == "gae":
        critic, travel = build_critic()
        return GaeWithCritic(critic, algo, mesh, step_state, travel)
    if algo.advantage == "reinforce_pp":
        return RewardsToGo(algo.gamma, mesh)
    compare = {
        "group": partial(group_advantages, divide_by_std=algo.divide_by_std),
        "rloo": leave_one_out_advantages,
        "reinforce_pp_baseline": partial(group_advantages, divide_by_std=False),
    }[algo.advantage]
    return GroupBaseline(compare, num_prompts, mesh)


def kl_warnings(algo: AlgoConfig) -> list[str]:
    """One message where a KL penalty would be blown up to the size of a reward."""
    if not (algo.advantage == "group" and algo.divide_by_std and algo.kl_coef and algo.kl_in == "reward"):
        return []
    return [
        "algo.kl_in=reward with algo.divide_by_std=true: where all responses to a prompt earn the same, the KL penalty "
        "alone differs, and divided by its own deviation it is as large as any reward. algo.kl_in=loss keeps it at "
        "algo.kl_coef."
    ]
