"""One PPO step, read from top to bottom, and the loop of steps around it.

Legend: B samples of this data rank, T predicted tokens (sequence length - 1). At index t a `_BT` tensor speaks of token
t + 1; `mask_BT` is 1 where that token is the response's.
"""

from collections.abc import Callable, Sequence
from functools import partial

from nemo_simplerl.algo.advantages import whiten
from nemo_simplerl.algo.kl import kl_penalty
from nemo_simplerl.algo.rewards import token_rewards
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.eval.run import SpreadRows
from nemo_simplerl.trainer.groups import Rollout, SampledGroups
from nemo_simplerl.trainer.logging.metrics import reference_metrics
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.run import Run


def ppo_step(
    step: int, prompts: Sequence[Prompt], roles: Roles, prompts_ahead: Callable[[int], Sequence[Prompt]] | None = None
) -> tuple[dict[str, float], SpreadRows]:
    """Sample, grade, learn from it, and hand the new policy to the engine. Collective: call on every rank.

    Steps count from 1. prompts: those that the step may take, in order. prompts_ahead: of the number that it has taken,
    those of the step after, which the engine samples while this one trains (rollout.ahead); None: it waits. Returns the
    step's metrics and its samples as rows for the run directory, each rank those that it holds.
    """
    groups = roles.announce(roles.sampled_ahead or sample(step, prompts, roles))
    rollout = groups.trained
    if prompts_ahead is not None:
        roles.deliver(rollout, step)
        roles.sample_ahead(partial(sample, step + 1, prompts_ahead(len(groups.prompts)), roles))

    metrics = groups.metrics | learn(step, rollout, roles)
    if step > roles.config.algo.critic_warmup_steps:
        metrics |= roles.refit(version=step)

    return roles.meet(metrics), groups.rows


def sample(step: int, prompts: Sequence[Prompt], roles: Roles) -> SampledGroups:
    """Sample and grade the groups of the step, on the ranks of the engine and by the weights that it holds."""
    groups = roles.begin(prompts, step)
    for new_prompts in roles.rounds(groups):  # one, or DAPO's: until enough groups are mixed (groups.py)
        completions = roles.generate(new_prompts, step)
        grades, rewards = roles.grade(new_prompts, completions)
        groups.add(new_prompts, completions, grades, rewards)
    return groups


def learn(step: int, rollout: Rollout, roles: Roles) -> dict[str, float]:
    """Estimate advantages, update critic then actor. Collective. Returns metrics.

    The batch and all that is computed from it end here: the refit needs their memory.
    """
    algo, data_group = roles.config.algo, roles.mesh.data
    batch = roles.batch(rollout, step)
    old_logprobs_BT = roles.old_logprobs(batch)
    gate = roles.consistency_gate(batch, old_logprobs_BT, step)
    ref_logprobs_BT = roles.reference_logprobs(batch) if algo.kl_coef else old_logprobs_BT

    kl_BT = kl_penalty(old_logprobs_BT, ref_logprobs_BT, algo.kl_estimator)
    rewards_BT = token_rewards(batch.scores_B, kl_BT, batch.mask_BT, algo.kl_coef_of_reward, algo.reward_clip)
    estimate = roles.estimate(step, batch, rewards_BT)  # by a critic or from the rewards alone: estimators.py
    roles.require_finite(step, old_logprobs=old_logprobs_BT, **estimate.columns_BT)
    advantages_BT = estimate.advantages_BT
    if algo.normalize_advantages:
        advantages_BT = whiten(advantages_BT, batch.loss_mask_BT, data_group)

    metrics = gate.metrics | estimate.metrics
    metrics |= reference_metrics(batch.mask_BT, old_logprobs_BT, ref_logprobs_BT, data_group)
    metrics |= roles.update_critic(batch, estimate)
    if step > algo.critic_warmup_steps:
        metrics |= roles.update_actor(batch, old_logprobs_BT, ref_logprobs_BT, advantages_BT, gate.weights_BT)
    return metrics


def train(run: Run) -> None:
    """Resume, refit once, evaluate step 0, then loop: step, evaluate, log, save; finish. Collective."""
    done = run.resume()
    refit_metrics = run.roles.refit(version=run.weight_version(done))
    if run.is_new:
        run.log_step(0, refit_metrics | run.evaluate(0))
    for step in range(done + 1, run.last_step + 1):
        metrics, samples = ppo_step(step, run.next_prompts(), run.roles, run.prompts_ahead(step))
        run.log_samples(step, samples)
        run.log_step(step, metrics | run.evaluate(step))
        run.save(step)
    run.finish()
