"""An estimator is a value: one without a critic goes through ppo_step, and trains the actor alone."""

import weakref

import pytest
import torch

from nemo_simplerl.trainer.estimators import Estimate
from nemo_simplerl.trainer.loop import ppo_step
from support.gate import PROMPTS
from support.ranks import run_ranks
from support.tiny import save_hf_model, scripted_roles


class ScoreEverywhere:
    """The advantage of every response token is the score of its response."""

    learners: dict = {}
    update_loops: dict = {}

    def estimate(self, batch, rewards_BT):
        advantages_BT = batch.scores_B[:, None] * batch.mask_BT
        return Estimate(advantages_BT, advantages_BT, columns_BT={}, metrics={"score/seen": 1.0})

    def update(self, batch, estimate):
        return {}


def _step(folder: str) -> dict:
    with scripted_roles(folder, {}, {}) as roles:
        critic, roles.estimator = roles.estimator.critic, ScoreEverywhere()
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
        record = roles.step_state.gather_record(roles.mesh)
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
    assert found["samples"] == 8 and found["metrics"]["score/seen"] == 1.0
    assert not [name for name in found["metrics"] if name.startswith("critic/")]
