"""Engine against trainer by hand: the metrics, the tokens beyond a bound, and the weights of importance sampling."""

import math

import pytest
import torch

from nemo_simplerl.algo.consistency import (
    beyond_bound,
    difference_metrics,
    difference_sums,
    importance_weights,
    weight_metrics,
    weight_sums,
)
from nemo_simplerl.algo.loss import PolicyObjective, policy_loss
from nemo_simplerl.parallel.reductions import all_reduce_metrics

# d = trainer - engine is 0.5, -0.25, 0 | 1. The zeros of the mask are a prompt, an EOS never sampled, and padding.
ENGINE_BT = torch.tensor([[9.0, -1.0, -2.0, -0.5], [-3.0, 0.0, -1.0, 7.0]])
TRAINER_BT = torch.tensor([[0.0, -0.5, -2.25, -0.5], [-2.0, 0.0, -9.0, 0.0]])
MASK_BT = torch.tensor([[0.0, 1, 1, 1], [1, 0, 0, 0]])


def _metrics(engine_BT, trainer_BT, mask_BT, bound):
    return difference_metrics(all_reduce_metrics(difference_sums(engine_BT, trainer_BT, mask_BT, bound), None))


def test_the_metrics_are_means_over_the_sampled_tokens_alone():
    metrics = _metrics(ENGINE_BT, TRAINER_BT, MASK_BT, 0.3)
    k3 = [math.exp(d) - 1 - d for d in (0.5, -0.25, 0.0, 1.0)]
    assert metrics == pytest.approx(
        {
            "logprob_diff_mean": (0.5 + 0.25 + 0.0 + 1.0) / 4,
            "logprob_diff_max": 1.0,
            "kl_k3": sum(k3) / 4,
            # exp of the mean of -d: the trainer finds the samples likelier than the engine, so its perplexity is lower.
            "perplexity_ratio": math.exp(-(0.5 - 0.25 + 0.0 + 1.0) / 4),
            "share_beyond": 0.5,
            "not_finite": 0.0,
        }
    )


def test_rows_on_two_ranks_give_the_metrics_of_all_rows():
    parts = [difference_sums(ENGINE_BT[row], TRAINER_BT[row], MASK_BT[row], 0.3) for row in (slice(0, 1), slice(1, 2))]
    combined = {
        name: float(max(value, parts[1][name]) if name.endswith("_max") else value + parts[1][name])
        for name, value in parts[0].items()
    }
    assert difference_metrics(combined) == _metrics(ENGINE_BT, TRAINER_BT, MASK_BT, 0.3)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_token_without_a_finite_difference_is_counted_and_enters_no_mean(poison):
    engine_BT = ENGINE_BT.clone()
    engine_BT[0, 3] = poison  # its d was 0
    metrics = _metrics(engine_BT, TRAINER_BT, MASK_BT, 0.3)
    assert metrics["not_finite"] == 1
    assert metrics["share_beyond"] == 0.75
    assert metrics["logprob_diff_mean"] == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    assert metrics["logprob_diff_max"] == 1.0
    engine_BT = torch.full_like(ENGINE_BT, poison)
    assert math.isnan(_metrics(engine_BT, TRAINER_BT, MASK_BT, 0.3)["logprob_diff_mean"])


def test_what_stands_outside_the_mask_changes_nothing():
    engine_BT = torch.where(MASK_BT > 0, ENGINE_BT, torch.nan)
    assert _metrics(engine_BT, TRAINER_BT, MASK_BT, 0.3) == _metrics(ENGINE_BT, TRAINER_BT, MASK_BT, 0.3)
    assert not beyond_bound(engine_BT, TRAINER_BT, MASK_BT, 0.3)[MASK_BT == 0].any()
    assert (importance_weights(engine_BT, TRAINER_BT, MASK_BT, 2.0)[MASK_BT == 0] == 1).all()


def test_a_rollout_without_a_sampled_token_has_metrics_too():
    metrics = _metrics(ENGINE_BT, TRAINER_BT, torch.zeros_like(MASK_BT), 0.3)
    assert metrics["share_beyond"] == metrics["not_finite"] == 0


def test_a_perplexity_that_leaves_the_range_of_numbers_is_infinite():
    engine_BT, trainer_BT = torch.zeros(1, 2), torch.full((1, 2), -1000.0)
    assert _metrics(engine_BT, trainer_BT, torch.ones(1, 2), 0.3)["perplexity_ratio"] == math.inf


def test_a_token_at_the_bound_is_not_beyond_it():
    beyond_BT = beyond_bound(ENGINE_BT, TRAINER_BT, MASK_BT, 0.5)
    assert beyond_BT.tolist() == [[False, False, False, False], [True, False, False, False]]
    beyond_BT = beyond_bound(ENGINE_BT, TRAINER_BT, MASK_BT, 0.25)
    assert beyond_BT.tolist() == [[False, True, False, False], [True, False, False, False]]


def test_importance_weights_are_the_ratio_up_to_the_cap():
    engine_BT = torch.tensor([[0.5, 0.2, 0.1, 0.3, 0.25]]).log()
    trainer_BT = torch.tensor([[0.25, 0.3, 0.9, 0.3, 0.5]]).log()
    weights_BT = importance_weights(engine_BT, trainer_BT, torch.ones(1, 5), 2.0)
    torch.testing.assert_close(weights_BT, torch.tensor([[0.5, 1.5, 2.0, 1.0, 2.0]]))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_token_of_unknown_probability_weighs_nothing(poison):
    weights_BT = importance_weights(torch.tensor([[poison, -1.0]]), torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2), 2.0)
    assert weights_BT.tolist() == [[0.0, 1.0]]


def _gradient(weights_BT, advantages, logprobs_BT=None):
    """Loss and its gradient on the log-probabilities at ratio 1, each of three tokens weighing 1/3."""
    logprobs_BT = torch.full((1, 3), -1.0, requires_grad=True) if logprobs_BT is None else logprobs_BT
    loss, _ = policy_loss(
        logprobs_BT,
        logprobs_BT.detach(),
        torch.tensor([advantages]),
        torch.zeros(1, 3),
        weights_BT / 3,
        PolicyObjective(ratio_eps=0.2),
    )
    loss.backward()
    return float(loss.detach()), logprobs_BT.grad


def test_a_masked_token_has_no_gradient_and_the_others_are_not_scaled_up():
    engine_BT = torch.tensor([[-1.0, -2.0, -1.25]])
    keep_BT = (~beyond_bound(engine_BT, torch.full((1, 3), -1.0), torch.ones(1, 3), 0.5)).float()
    loss, gradient_BT = _gradient(keep_BT, [2.0, -1.0, 3.0])
    assert loss == pytest.approx(-(2 + 3) / 3)
    torch.testing.assert_close(gradient_BT, torch.tensor([[-2 / 3, 0.0, -1.0]]))


def test_a_corrected_gradient_is_scaled_by_the_weight_and_none_flows_through_it():
    # Ratios 0.5, 1.5 and 3, of which the cap leaves 2: the gradient is -weight * advantage / 3.
    logprobs_BT = torch.full((1, 3), -1.0, requires_grad=True)
    engine_BT = -1.0 - torch.tensor([[0.5, 1.5, 3.0]]).log()
    weights_BT = importance_weights(engine_BT, logprobs_BT, torch.ones(1, 3), 2.0)
    loss, gradient_BT = _gradient(weights_BT, [2.0, -1.0, 3.0], logprobs_BT)
    assert loss == pytest.approx(-(0.5 * 2 - 1.5 + 2 * 3) / 3)
    torch.testing.assert_close(gradient_BT, torch.tensor([[-0.5 * 2 / 3, 0.5, -2.0]]))


def test_samples_of_an_older_policy_are_weighed_and_clipped_around_the_one_that_is_trained():
    # The trained policy at the step's start gives each token -1. The one that sampled made them twice as likely, and
    # half as likely, and a third as likely; the cap is 2: below it, at it, above it. Updates have moved the ratio.
    old_BT, mask_BT = torch.full((1, 3), -1.0), torch.ones(1, 3)
    sampler_BT = old_BT - torch.tensor([[0.5, 2.0, 3.0]]).log()
    logprobs_BT = (old_BT + torch.tensor([[1.5, 0.9, 1.1]]).log()).requires_grad_()
    weights_BT = importance_weights(sampler_BT, old_BT, mask_BT, 2.0)
    loss, _ = policy_loss(
        logprobs_BT,
        old_BT,
        torch.tensor([[2.0, -1.0, 3.0]]),
        torch.zeros(1, 3),
        weights_BT * mask_BT / 3,
        PolicyObjective(ratio_eps=0.2),
    )
    loss.backward()
    # min(r A, clip(r) A) is 1.2 * 2, 0.9 * -1 and 1.1 * 3; the gradient is -w r A / 3, and 0 where the clip acts.
    assert float(loss.detach()) == pytest.approx(-(0.5 * 2.4 + 2 * -0.9 + 2 * 3.3) / 3)
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[0.0, 2 * 0.9 / 3, -2 * 3.3 / 3]]))


@pytest.mark.parametrize("cap", [2.0, 1.3])  # in float32 1.3 is another number
def test_the_weights_are_told_by_those_at_the_cap_and_by_how_many_equal_ones_they_are_worth(cap):
    weights_BT = torch.tensor([[9.0, 0.5, cap, cap, 1.0]])
    sums = weight_sums(weights_BT, torch.tensor([[0.0, 1, 1, 1, 1]]), cap) | {"tokens": 4.0}
    found = weight_metrics({name: float(value) for name, value in sums.items()})
    worth = (1.5 + 2 * cap) ** 2 / (0.25 + 2 * cap**2 + 1.0) / 4
    assert found == pytest.approx({"weight_capped_share": 0.5, "effective_sample_size": worth}, rel=1e-6)


def test_weights_of_no_token_are_worth_nothing():
    nothing = {"tokens": 0.0, "weight": 0.0, "squared_weight": 0.0, "weights_capped": 0.0}
    assert weight_metrics(nothing) == {"weight_capped_share": 0.0, "effective_sample_size": 0.0}
