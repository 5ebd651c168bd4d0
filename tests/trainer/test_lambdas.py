"""The lambdas of actor and critic, by hand, and that of the steps which train the critic alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.estimators import GaeWithCritic

# Two responses of two tokens and one, after a prompt position that does not count.
MASK_BT = torch.tensor([[0.0, 1, 1], [0, 1, 0]])
VALUES_BT = torch.tensor([[0.0, 0.5, 0.25], [0, 0.5, 0]])
REWARDS_BT = torch.tensor([[0.0, 0, 1], [0, -1, 0]])
# gamma 1. Row 0: delta[2] = 1 - 0.25 = 0.75, delta[1] = 0.25 - 0.5 = -0.25. Row 1: delta[1] = -1 - 0.5 = -1.5.
TD_BT = torch.tensor([[0.0, -0.25, 0.75], [0, -1.5, 0]])


class FixedValues(GaeWithCritic):
    def values(self, batch):
        return VALUES_BT


def estimate(step: int = 1, **algo):
    config = replace(compose(["experiment=quickstart"]).algo, gae_lambda=0.0, **algo)
    critic = SimpleNamespace(learner=None, update_loop=None)
    share = object()  # of actor and critic alike: nothing travels
    state = SimpleNamespace(lengths=(), shares={"actor": share, "critic": share})
    estimator = FixedValues(critic, config, SimpleNamespace(data=None), state)
    batch = SimpleNamespace(mask_BT=MASK_BT)
    estimator.begin({"actor": batch, "critic": batch})
    return estimator.estimate(step, batch, REWARDS_BT)


def returns_of(found) -> list:
    return found.returns_BT.tolist()


MONTE_CARLO = [[0, 1, 1], [0, -1, 0]]  # the reward to come
ONE_STEP = [[0, 0.25, 1], [0, -1, 0]]  # temporal difference plus value


def test_without_a_lambda_of_its_own_the_critic_is_fitted_to_the_actors_returns():
    found = estimate()
    torch.testing.assert_close(found.advantages_BT, TD_BT)
    assert returns_of(found) == ONE_STEP
    assert "critic/lambda_mean" not in found.metrics


def test_the_critics_lambda_changes_its_returns_and_no_advantage():
    found = estimate(gae_lambda_critic=1.0)
    torch.testing.assert_close(found.advantages_BT, TD_BT)
    assert returns_of(found) == MONTE_CARLO
    assert found.metrics["critic/return_mean"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("step", "expected"), [(1, MONTE_CARLO), (2, MONTE_CARLO), (3, ONE_STEP)])
def test_the_steps_that_train_the_critic_alone_may_fit_it_to_monte_carlo_returns(step, expected):
    assert returns_of(estimate(step, critic_warmup_steps=2, critic_warmup_lambda=1.0)) == expected


def test_after_its_warm_up_the_critic_has_its_own_lambda_again():
    changes = {"critic_warmup_steps": 1, "critic_warmup_lambda": 0.0, "gae_lambda_critic": 1.0}
    assert returns_of(estimate(1, **changes)) == ONE_STEP
    assert returns_of(estimate(2, **changes)) == MONTE_CARLO


def test_lambda_by_length_is_each_responses_own_and_is_reported():
    found = estimate(gae_length_alpha=1.0)
    # lambda 1 - 1/2 for two tokens, 1 - 1/1 for one: A[1] = -0.25 + 0.5 * 0.75 = 0.125
    torch.testing.assert_close(found.advantages_BT, torch.tensor([[0, 0.125, 0.75], [0, -1.5, 0]]))
    assert returns_of(found) == [[0, 0.625, 1], [0, -1, 0]]  # without a lambda of its own, from the same advantages
    assert found.metrics["critic/lambda_mean"] == pytest.approx(1 / 3)  # of three tokens, two have 0.5
    assert returns_of(estimate(gae_length_alpha=1.0, gae_lambda_critic=1.0)) == MONTE_CARLO
