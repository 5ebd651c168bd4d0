"""The losses by hand, and the weights that make them independent of how the rows were split."""

import math

import pytest
import torch

from nemo_simplerl.algo.kl import kl_loss
from nemo_simplerl.algo.loss import PolicyObjective, policy_loss, positive_nll, token_weights, value_loss


def _policy(ratios, advantages, weights, entropy=None, *, ratio_eps=0.2, **objective):
    """Loss, metrics, and gradients on log-probabilities and entropy, for one row of tokens."""
    old_logprobs_BT = torch.full((1, len(ratios)), -2.0)
    logprobs_BT = (old_logprobs_BT + torch.tensor([ratios]).log()).requires_grad_()
    entropy_BT = torch.tensor([entropy or [0.0] * len(ratios)], requires_grad=True)
    loss, metrics = policy_loss(
        logprobs_BT,
        old_logprobs_BT,
        torch.tensor([advantages]),
        entropy_BT,
        torch.tensor([weights]),
        PolicyObjective(ratio_eps=ratio_eps, **objective),
    )
    loss.backward()
    return loss.detach(), metrics, logprobs_BT.grad, entropy_BT.grad


def test_policy_loss_clips_a_gain_and_never_a_loss():
    # Ratio, A -> min(ratio * A, clamp(ratio, 0.8, 1.2) * A); the gradient on log p is -weight * ratio * A.
    #   1.5, 2 -> 2.4 clipped    1.5, -2 -> -3    0.5, 2 -> 1    0.5, -2 -> -1.6 clipped    1.1, 2 -> 2.2
    ratios, advantages = [1.5, 1.5, 0.5, 0.5, 1.1], [2.0, -2.0, 2.0, -2.0, 2.0]
    weights = [0.1, 0.2, 0.1, 0.3, 0.3]
    loss, metrics, gradient_BT, _ = _policy(ratios, advantages, weights)
    # -(0.1 * 2.4 - 0.2 * 3 + 0.1 * 1 - 0.3 * 1.6 + 0.3 * 2.2) = 0.08
    assert float(loss) == pytest.approx(0.08, abs=1e-6)
    torch.testing.assert_close(gradient_BT, torch.tensor([[0, 0.2 * 3.0, -0.1 * 1.0, 0, -0.3 * 2.2]]))
    assert float(metrics["policy_loss"]) == pytest.approx(0.08, abs=1e-6)
    assert float(metrics["clip_fraction"]) == pytest.approx(0.4)
    assert float(metrics["ratio_deviation_max"]) == pytest.approx(0.5)
    k3 = [ratio - 1 - math.log(ratio) for ratio in ratios]
    expected_kl = sum(weight * kl for weight, kl in zip(weights, k3, strict=True))
    assert float(metrics["approx_kl"]) == pytest.approx(expected_kl, rel=1e-4)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    loss, metrics, gradient_BT, _ = _policy([1.0, 1.0], [2.0, -0.5], [0.5, 0.5])
    assert float(loss) == pytest.approx(-0.75)
    torch.testing.assert_close(gradient_BT, torch.tensor([[-1.0, 0.25]]))
    assert [float(metrics[key]) for key in ("clip_fraction", "approx_kl", "ratio_deviation_max")] == [0, 0, 0]


def test_the_entropy_bonus_rewards_entropy_and_without_one_entropy_gets_no_gradient():
    loss, metrics, _, gradient_BT = _policy([1.0, 1.0], [1.0, 1.0], [0.25, 0.75], [2.0, 4.0], entropy_bonus=0.1)
    assert float(metrics["entropy"]) == pytest.approx(3.5)
    assert float(metrics["policy_loss"]) == pytest.approx(-1.0)
    assert float(loss) == pytest.approx(-1.0 - 0.35)
    torch.testing.assert_close(gradient_BT, torch.tensor([[-0.025, -0.075]]))
    loss, metrics, _, gradient_BT = _policy([1.0, 1.0], [1.0, 1.0], [0.25, 0.75], [2.0, 4.0])
    assert float(loss) == pytest.approx(-1.0)
    assert float(metrics["entropy"]) == pytest.approx(3.5)
    assert gradient_BT is None


def test_a_higher_upper_bound_lets_gains_grow_further_and_leaves_the_lower_one():
    # Bounds 0.8 and 1.28.   1.25, 2 -> 2.5    1.5, 2 -> 2.56 clipped    0.5, -2 -> -1.6 clipped    1.5, -2 -> -3
    loss, metrics, gradient_BT, _ = _policy(
        [1.25, 1.5, 0.5, 1.5], [2.0, 2.0, -2.0, -2.0], [0.1, 0.2, 0.3, 0.4], ratio_eps_high=0.28
    )
    assert float(loss) == pytest.approx(-(0.1 * 2.5 + 0.2 * 2.56 - 0.3 * 1.6 - 0.4 * 3.0))
    torch.testing.assert_close(gradient_BT, torch.tensor([[-0.1 * 2.5, 0, 0, 0.4 * 3.0]]))
    assert float(metrics["clip_fraction"]) == pytest.approx(0.5)


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likelier_and_of_no_other():
    # Bound 3 where A is negative.
    #   4, -2 -> -6 bounded    2, -2 -> -4    4, 2 -> 2.4 clipped    0.5, -2 -> -1.6 clipped
    ratios, advantages, weights = [4.0, 2.0, 4.0, 0.5], [-2.0, -2.0, 2.0, -2.0], [0.1, 0.2, 0.3, 0.4]
    loss, metrics, gradient_BT, _ = _policy(ratios, advantages, weights, dual_clip=3.0)
    assert float(loss) == pytest.approx(0.1 * 6 + 0.2 * 4 - 0.3 * 2.4 + 0.4 * 1.6)
    torch.testing.assert_close(gradient_BT, torch.tensor([[0, 0.2 * 4.0, 0, 0]]))
    assert float(metrics["dual_clip_fraction"]) == pytest.approx(0.1)
    assert float(metrics["clip_fraction"]) == pytest.approx(0.7)
    assert float(metrics["ratio_deviation_max"]) == pytest.approx(3.0)
    assert "dual_clip_fraction" not in _policy(ratios, advantages, weights)[1]


def test_dual_clip_keeps_a_ratio_that_overflows_out_of_loss_and_gradient():
    logprobs_BT = torch.tensor([[0.0, -1.0]], requires_grad=True)
    loss, _ = policy_loss(
        logprobs_BT,
        torch.tensor([[-100.0, -1.0]]),
        torch.tensor([[-1.0, -1.0]]),
        torch.zeros(1, 2),
        torch.tensor([[0.5, 0.5]]),
        PolicyObjective(ratio_eps=0.2, dual_clip=3.0),
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * 3 + 0.5)
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[0.0, 0.5]]))


def test_cispo_weighs_the_log_probability_by_a_bounded_ratio_and_drops_no_token():
    # Weights min(max(ratio, 0.5), 2); log p is log ratio - 2; the gradient on it is -weight * bounded ratio * A.
    ratios, advantages, weights = [4.0, 0.25, 1.5], [1.0, 2.0, -1.0], [0.2, 0.3, 0.5]
    bounds = {"cispo_ratio_min": 0.5, "cispo_ratio_max": 2.0}
    loss, metrics, gradient_BT, _ = _policy(ratios, advantages, weights, policy_loss="cispo", **bounds)
    logprobs = [math.log(ratio) - 2 for ratio in ratios]
    assert float(loss) == pytest.approx(
        -0.2 * 2.0 * logprobs[0] - 0.3 * 0.5 * 2 * logprobs[1] + 0.5 * 1.5 * logprobs[2]
    )
    torch.testing.assert_close(gradient_BT, torch.tensor([[-0.2 * 2.0, -0.3 * 0.5 * 2, 0.5 * 1.5]]))
    assert float(metrics["clip_fraction"]) == pytest.approx(0.5)


def test_metrics_are_means_by_weights_of_their_own_where_those_of_the_loss_do_not_add_up_to_1():
    weights_BT, shares_BT = torch.full((1, 2), 0.01), torch.full((1, 2), 0.5)
    given = torch.tensor([[1.5, 1.0]]).log(), torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[2.0, 4.0]])
    loss, metrics = policy_loss(*given, weights_BT, PolicyObjective(ratio_eps=0.2), metric_weights_BT=shares_BT)
    assert float(loss) == pytest.approx(-0.01 * 2.2) == pytest.approx(float(metrics["policy_loss"]))
    assert float(metrics["clip_fraction"]) == pytest.approx(0.5)
    assert float(metrics["entropy"]) == pytest.approx(3.0)
    assert float(metrics["approx_kl"]) == pytest.approx(0.5 * (0.5 - math.log(1.5)))


# Three sequences in rows of three tokens: three tokens, one between two that do not count, none.
RATIOS_BT = torch.tensor([[1.0, 2.0, 4.0], [9.0, 1.5, 9.0], [9.0, 9.0, 9.0]])
COUNTS_BT = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def _sequence_level(ratios_BT, counts_BT, sequences_BT=None, **objective):
    """Under seq_mean with the advantages 1, -2, 5 of three sequences: loss and gradient."""
    numbers_BT = sequences_BT if sequences_BT is not None else torch.arange(3)[:, None].expand(3, 3)
    lengths_B = torch.zeros(3).index_add(0, numbers_BT.flatten(), counts_BT.flatten()).clamp(min=1.0)
    logprobs_BT = ratios_BT.log().requires_grad_()
    loss, _ = policy_loss(
        logprobs_BT,
        torch.zeros_like(ratios_BT),
        torch.tensor([1.0, -2.0, 5.0])[numbers_BT],
        torch.zeros_like(ratios_BT),
        counts_BT / (2 * lengths_B[numbers_BT]),
        PolicyObjective(ratio_eps=0.2, ratio_level="sequence", **objective),
        sequences_BT,
    )
    loss.backward()
    return float(loss.detach()), logprobs_BT.grad


def test_a_sequence_level_ratio_is_the_geometric_mean_over_the_tokens_that_count():
    # Geometric means 2 and 1.5; with bounds 0.8 and 4: -(2 * 1 - 1.5 * 2) / 2. Each token has the sequence's share.
    loss, gradient_BT = _sequence_level(RATIOS_BT, COUNTS_BT, ratio_eps_high=3.0)
    assert loss == pytest.approx(0.5)
    third, whole = -2.0 * 1.0 / 6, 1.5 * 2.0 / 2
    torch.testing.assert_close(gradient_BT, torch.tensor([[third, third, third], [0, whole, 0], [0, 0, 0]]))
    # With bounds 0.8 and 1.2 the gain of the first is clipped to 1.2 as a whole.
    loss, gradient_BT = _sequence_level(RATIOS_BT, COUNTS_BT)
    assert loss == pytest.approx(-(1.2 - 3.0) / 2)
    torch.testing.assert_close(gradient_BT, torch.tensor([[0, 0, 0], [0, whole, 0], [0, 0, 0]]))


def test_sequences_behind_each_other_in_one_row_have_the_ratios_of_their_own():
    expected, expected_BT = _sequence_level(RATIOS_BT, COUNTS_BT, ratio_eps_high=3.0)
    numbers_BT = torch.arange(3).repeat_interleave(3)[None]
    loss, gradient_BT = _sequence_level(
        RATIOS_BT.reshape(1, 9), COUNTS_BT.reshape(1, 9), numbers_BT, ratio_eps_high=3.0
    )
    assert loss == pytest.approx(expected)
    torch.testing.assert_close(gradient_BT.view(3, 3), expected_BT)


def test_the_likelihood_of_right_responses_is_their_tokens_mean_and_clears_what_does_not_count():
    logprobs_BT = torch.tensor([[-1.0, -3.0], [-math.inf, -2.0]], requires_grad=True)
    nll = positive_nll(logprobs_BT, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    nll.backward()
    assert float(nll.detach()) == pytest.approx(2.0)
    assert logprobs_BT.grad.tolist() == [[-0.5, -0.5], [0, 0]]


def _value(values, old_values, returns, weights, value_clip):
    values_BT = torch.tensor([values], requires_grad=True)
    loss, metrics = value_loss(
        values_BT,
        torch.tensor([old_values]),
        torch.tensor([returns]),
        torch.tensor([weights]),
        value_clip=value_clip,
    )
    loss.backward()
    return loss.detach(), metrics, values_BT.grad


def test_value_loss_without_a_clip_is_half_the_squared_error():
    loss, metrics, gradient_BT = _value([1.0, -2.0], [0.0, 0.0], [3.0, -1.0], [0.25, 0.75], None)
    assert float(loss) == pytest.approx(0.5 * (0.25 * 4 + 0.75 * 1))
    torch.testing.assert_close(gradient_BT, torch.tensor([[-0.5, -0.75]]))
    assert float(metrics["value_loss"]) == float(loss)
    assert float(metrics["value_clip_fraction"]) == 0


def test_value_loss_with_a_clip_takes_the_larger_error():
    # Old value 0, clip 0.5.
    #   value 2, return 3: errors 1 and (0.5 - 3)^2 = 6.25, so no gradient.
    #   value 0.25, return 1: both errors 0.5625, gradient -0.75.
    #   value -2, return 1: errors 9 and (-0.5 - 1)^2 = 2.25, gradient -3.
    #   value -2, return -3: errors 1 and 6.25, so no gradient.
    values, returns, weights = [2.0, 0.25, -2.0, -2.0], [3.0, 1.0, 1.0, -3.0], [0.1, 0.2, 0.3, 0.4]
    loss, metrics, gradient_BT = _value(values, [0.0] * 4, returns, weights, 0.5)
    assert float(loss) == pytest.approx(0.5 * (0.1 * 6.25 + 0.2 * 0.5625 + 0.3 * 9 + 0.4 * 6.25))
    torch.testing.assert_close(gradient_BT, torch.tensor([[0, -0.2 * 0.75, -0.3 * 3, 0]]))
    assert float(metrics["value_clip_fraction"]) == pytest.approx(0.5)


def test_a_value_within_the_clip_is_not_counted_as_clipped_by_rounding():
    # 0.7 + (1e-3 - 0.7) is not 1e-3 in float32.
    generator = torch.Generator().manual_seed(0)
    old_values_BT, returns_BT, values_BT = torch.rand(3, 20, 50, generator=generator)
    weights_BT = torch.full((20, 50), 1e-3)
    _, metrics = value_loss(0.01 * values_BT, old_values_BT, returns_BT, weights_BT, value_clip=2.0)
    assert float(metrics["value_clip_fraction"]) == 0


MASK_BT = torch.tensor([[0.0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])


def test_token_mean_weighs_tokens_and_seq_mean_weighs_sequences():
    token_mean_BT = token_weights(MASK_BT, "token_mean", num_tokens=6, num_sequences=3)
    torch.testing.assert_close(token_mean_BT, MASK_BT / 6)
    seq_mean_BT = token_weights(MASK_BT, "seq_mean", num_tokens=6, num_sequences=3)
    share_B1 = torch.tensor([[1 / 9], [1 / 3], [0.0], [1 / 6]])
    torch.testing.assert_close(seq_mean_BT, MASK_BT * share_B1)


def test_the_token_sum_over_a_constant_weighs_tokens_whatever_the_lengths_are():
    weights_BT = token_weights(MASK_BT, "token_sum_over_max", num_tokens=6, num_sequences=4, max_tokens=10)
    torch.testing.assert_close(weights_BT, MASK_BT / 40)


AGGREGATIONS = ["token_mean", "seq_mean", "token_sum_over_max"]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_update_without_a_token_weighs_nothing(aggregation):
    weights_BT = token_weights(torch.zeros(2, 3), aggregation, num_tokens=0, num_sequences=0, max_tokens=4)
    assert torch.equal(weights_BT, torch.zeros(2, 3))


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="'mean'; choose token_mean, seq_mean or token_sum_over_max"):
        token_weights(MASK_BT, "mean", num_tokens=1, num_sequences=1)


OBJECTIVES = {
    "clip": PolicyObjective(ratio_eps=0.2, entropy_bonus=0.01),
    "sequence": PolicyObjective(ratio_eps=0.05, ratio_level="sequence", dual_clip=1.06, entropy_bonus=0.01),
    "cispo": PolicyObjective(ratio_eps=0.2, policy_loss="cispo", cispo_ratio_max=1.1, entropy_bonus=0.01),
}


def _losses(inputs, mask_BT, aggregation, splits, objective="clip"):
    """Losses and metrics summed, and gradients, of the rows in micro-batches of the sizes in `splits`."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    counts = {"num_tokens": int(mask_BT.sum()), "num_sequences": int(mask_BT.any(dim=1).sum()), "max_tokens": 7}
    total, sums = torch.zeros(()), {}
    for rows in torch.arange(len(mask_BT)).split(splits):
        weights_BT = token_weights(mask_BT[rows], aggregation, **counts)
        part = {name: tensor[rows] for name, tensor in leaves.items()}
        policy, policy_metrics = policy_loss(
            part["logprobs"],
            part["old_logprobs"].detach(),
            part["advantages"].detach(),
            part["entropy"],
            weights_BT,
            OBJECTIVES[objective],
        )
        kl = kl_loss(
            part["logprobs"],
            part["ref_logprobs"].detach(),
            part["old_logprobs"].detach(),
            weights_BT,
            estimator="k3",
            importance_weight=True,
        )
        value, value_metrics = value_loss(
            part["values"],
            part["old_values"].detach(),
            part["returns"].detach(),
            weights_BT,
            value_clip=0.2,
        )
        (policy + kl + value).backward()
        total = total + policy.detach() + kl.detach() + value.detach()
        for key, metric in (policy_metrics | value_metrics).items():
            combine = max if key.endswith("_max") else float.__add__
            sums[key] = combine(sums.get(key, 0.0), float(metric))
    gradients = {name: leaves[name].grad for name in ("logprobs", "entropy", "values")}
    return total, sums, gradients


NAMES = ("logprobs", "old_logprobs", "advantages", "entropy", "values", "old_values", "returns", "ref_logprobs")


def _inputs(mask_BT):
    generator = torch.Generator().manual_seed(5)
    stacked = torch.randn(len(NAMES), *mask_BT.shape, generator=generator) * 0.4
    return dict(zip(NAMES, stacked, strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_loss_gradient_and_metrics_do_not_depend_on_the_micro_batches(aggregation, objective):
    mask_BT = torch.cat([MASK_BT, MASK_BT.flip(0)])
    inputs = _inputs(mask_BT)
    whole_loss, whole_metrics, whole_gradients = _losses(inputs, mask_BT, aggregation, [8], objective)
    assert whole_metrics["clip_fraction"] > 0
    assert whole_metrics["value_clip_fraction"] > 0
    for splits in ([1] * 8, [3, 5], [2, 1, 4, 1]):
        loss, metrics, gradients = _losses(inputs, mask_BT, aggregation, splits, objective)
        torch.testing.assert_close(loss, whole_loss, atol=1e-6, rtol=1e-5)
        assert metrics == pytest.approx(whole_metrics, rel=1e-5, abs=1e-7)
        assert all(torch.equal(gradients[name], whole_gradients[name]) for name in gradients)


@pytest.mark.parametrize(("objective", "aggregation"), [*zip(OBJECTIVES, AGGREGATIONS, strict=True)])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_outside_the_mask_reaches_neither_loss_nor_gradient(objective, aggregation, poison):
    inputs = _inputs(MASK_BT)
    spoilt = {name: torch.where(MASK_BT > 0, tensor, poison) for name, tensor in inputs.items()}
    clean_loss, clean_metrics, clean_gradients = _losses(inputs, MASK_BT, aggregation, [4], objective)
    loss, metrics, gradients = _losses(spoilt, MASK_BT, aggregation, [4], objective)
    assert torch.equal(loss, clean_loss)
    assert metrics == clean_metrics
    for name, gradient_BT in gradients.items():
        assert torch.equal(gradient_BT, clean_gradients[name])
        assert not gradient_BT[MASK_BT == 0].any()
