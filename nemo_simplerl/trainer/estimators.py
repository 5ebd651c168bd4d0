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
from nemo_simplerl.trainer.learners.elsewhere import ModelElsewhere
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

    roles: the names of those models. learners and update_loops: those that live on this rank, to be saved, resumed and
    stopped between updates like the actor.
    """

    roles: tuple[str, ...]
    learners: Mapping[str, Learner]
    update_loops: Mapping[str, UpdateLoop]

    def begin(self, batches: Mapping[str, Batch]) -> None:
        """Take this rank's batches of the step, by role."""

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """The advantage of every response token under the models from before the step's first update. Collective."""

    def update(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """Train the estimator's models on the rollout. Returns metrics, none where it has no models. Collective."""


class GaeWithCritic:
    """Generalised advantage estimation over the values of a critic (arXiv:1506.02438).

    The returns that the critic is fitted to may have a lambda of their own (VC-PPO, arXiv:2503.01491), and another one
    in the first steps, which train the critic alone.

    mesh: the actor's, whose batches advantages are of. The critic's batches are its own: values travel from its ranks
    to the actor's, and returns back.
    """

    roles = ("critic",)

    def __init__(self, critic: Critic | ModelElsewhere, algo: AlgoConfig, mesh: Mesh, step_state: StepState):
        self.critic, self.algo, self.mesh, self.step_state, self.travel = critic, algo, mesh, step_state, Travel()
        self.learners = {"critic": critic.learner} if isinstance(critic, Critic) else {}
        self.update_loops = {"critic": critic.update_loop}
        self._batch: Batch | None = None  # the critic's, of the step

    def begin(self, batches: Mapping[str, Batch]) -> None:
        """See Estimator.begin."""
        shares = self.step_state.shares
        self._batch = batches["critic"]
        self.travel.begin(self.step_state.lengths, shares["actor"], shares["critic"])

    @kept_in_step("values", "critic")
    def values(self, batch: Batch) -> Tensor:
        """float32 [B, T]: the critic's values from before the step's first update. Collective."""
        return self.critic.values(batch)

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """See Estimator.estimate."""
        assert self._batch is not None, "call begin() first"
        self._values_BT = self.values(self._batch)
        values_BT, lam = self.travel.back(self._values_BT, self._batch, batch), self._lambda(batch)
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
        assert self._batch is not None, "call begin() first"
        returns_BT = self.travel.there(estimate.returns_BT, batch, self._batch)
        updates = self.critic.update(self._batch, self._values_BT, returns_BT)
        self._batch = self._values_BT = None  # the refit needs their memory
        return update_metrics("critic", updates)

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

    roles: tuple[str, ...] = ()
    learners: Mapping[str, Learner] = {}
    update_loops: Mapping[str, UpdateLoop] = {}

    def begin(self, batches: Mapping[str, Batch]) -> None:
        """See Estimator.begin."""

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
    build_critic: Callable[[], Critic | ModelElsewhere],
) -> Estimator:
    """The estimator of a run with `num_prompts` prompts a step, on the actor's mesh. Collective.

    One without a critic does not call `build_critic`, and none is built.
    """
    if algo.advantage == "gae":
        return GaeWithCritic(build_critic(), algo, mesh, step_state)
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
