"""An estimator is a value: one without a critic goes through ppo_step, and trains the actor alone."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.schema import AlgoConfig
from nemo_simplerl.trainer.estimators import Estimator, build_estimator, kl_warnings
from nemo_simplerl.trainer.loop import ppo_step
from nemo_simplerl.trainer.saving.step_state import StepState
from support.gate import PROMPTS
from support.ranks import run_ranks
from support.tiny import save_hf_model, scripted_roles

# Rewards of two prompts' responses, one on each token; the second response to prompt 1 has one token, the others two.
REWARDS_BT = torch.tensor([[0.0, -0.1, 1.1], [-0.2, 0.2, 0], [0, 0, 0.5], [0, 0, 2.0]])
MASK_BT = torch.tensor([[0.0, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1]])
BATCH = SimpleNamespace(mask_BT=MASK_BT, groups_B=torch.tensor([0, 0, 1, 1]), scores_B=torch.tensor([1.0, 0, 2, 2]))
ALGO = compose(["experiment=quickstart"]).algo


def _no_critic():
    raise AssertionError("a critic is built")


def _without_critic(algo: AlgoConfig, advantage: str, mesh=None, num_prompts: int = 4, **changes) -> Estimator:
    algo = replace(algo, advantage=advantage, **changes)
    return build_estimator(algo, num_prompts, mesh or SimpleNamespace(data=None), StepState(), _no_critic)


# Sums of rewards: 1 and 0, 0.5 and 2. Their means: 0.5 and 1.25.
@pytest.mark.parametrize(
    ("advantage", "changes", "expected"),
    [
        ("group", {"divide_by_std": False}, [0.5, -0.5, -0.75, 0.75]),
        ("group", {}, [2**-0.5, -(2**-0.5), -(2**-0.5), 2**-0.5]),
        ("rloo", {}, [1.0, -1.0, -1.5, 1.5]),
        ("reinforce_pp_baseline", {}, [0.5, -0.5, -0.75, 0.75]),
        ("reinforce_pp", {}, [[0, 1.0, 1.1], [0, 0.2, 0], [0, 0.5, 0.5], [0, 0, 2.0]]),
        ("reinforce_pp", {"gamma": 0.5}, [[0, 0.45, 1.1], [-0.1, 0.2, 0], [0, 0.25, 0.5], [0, 0, 2.0]]),
    ],
)
def test_each_estimator_sums_the_rewards_with_their_kl_and_compares_as_it_says(advantage, changes, expected):
    estimate = _without_critic(ALGO, advantage, **changes).estimate(1, BATCH, REWARDS_BT)
    expected_BT = torch.tensor(expected).view(4, -1) * MASK_BT
    torch.testing.assert_close(estimate.advantages_BT, expected_BT, rtol=1e-5, atol=1e-6)
    assert estimate.metrics["advantage/std"] > 0 and estimate.columns_BT == {}
    if advantage != "reinforce_pp":
        # By scores alone: the KL does not make two responses that were graded alike different.
        assert estimate.metrics["advantage/equal_groups_share"] == 0.5


def test_a_kl_penalty_that_is_blown_up_to_the_size_of_a_reward_is_told():
    def told(**changes):
        return kl_warnings(replace(ALGO, **changes))

    assert "as large as any reward" in told(advantage="group")[0]
    assert told() == told(advantage="group", divide_by_std=False) == told(advantage="group", kl_in="loss") == []


def _step(folder: str) -> dict:
    with scripted_roles(folder, {}, {}) as roles:
        critic = roles.estimator.critic
        roles.estimator = _without_critic(roles.config.algo, "group", roles.mesh)
        roles.refit(0)
        weights = [
            [param.detach().clone() for param in learner.gpt.parameters()]
            for learner in (roles.actor.learner, critic.learner)
        ]
        batches, alive = [], []
        make, refit = roles.batch, roles.engine.refit

        def batch(*args):
            made = make(*args)
            batches.extend(weakref.ref(tensor) for tensor in (made.tokens_BS, made.mask_BT, made.engine_logprobs_BT))
            return made

        def refit_and_look(*args, **kwargs):
            alive.extend(tensor() is not None for tensor in batches)
            return refit(*args, **kwargs)

        roles.batch, roles.engine.refit = batch, refit_and_look
        metrics, samples = ppo_step(1, PROMPTS, roles)
        moved = [
            any(not torch.equal(old, new) for old, new in zip(before, learner.gpt.parameters(), strict=True))
            for before, learner in zip(weights, (roles.actor.learner, critic.learner), strict=True)
        ]
        record = roles.step_state.record_of()
        return {
            "moved": moved,
            "roles": list(roles.learners),
            "kept": (sorted(record.columns), list(record.finished_updates)),
            "metrics": metrics,
            "samples": len(samples),
            "of the batch at the refit": alive,
        }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    (of_rank,) = run_ranks(_step, 1, str(save_hf_model(tmp_path_factory.mktemp("base") / "model")))
    return of_rank


def test_the_batch_is_gone_when_the_refit_needs_its_memory(found):
    assert found["of the batch at the refit"] == [False] * 3


def test_an_estimator_without_a_critic_trains_saves_and_reports_the_actor_alone(found):
    assert found["moved"] == [True, False] and found["roles"] == ["actor"]
    assert found["kept"] == (["old_logprobs"], ["actor"])
    assert found["samples"] == 8 and found["metrics"]["advantage/std"] > 0
    assert not [name for name in found["metrics"] if name.startswith("critic/")]
