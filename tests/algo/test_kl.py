"""KL estimators by hand, and their expectation over a distribution small enough to enumerate."""

import math

import pytest
import torch

from nemo_simplerl.algo.kl import kl_loss, kl_penalty


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # d = ln 2 and d = -ln 2: exp(-d) is 1/2 and 2.
        ("k1", [math.log(2), -math.log(2)]),
        ("k2", [math.log(2) ** 2 / 2, math.log(2) ** 2 / 2]),
        ("k3", [math.log(2) - 0.5, 1 - math.log(2)]),
        ("abs", [math.log(2), math.log(2)]),
    ],
)
def test_by_hand(estimator, expected):
    logprobs_BT, ref_logprobs_BT = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
    torch.testing.assert_close(kl_penalty(logprobs_BT, ref_logprobs_BT, estimator), torch.tensor([expected]))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_average_to_the_kl_of_the_two_distributions(estimator):
    p_V, q_V = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    exact = sum(p * math.log(p / q) for p, q in zip(p_V.tolist(), q_V.tolist(), strict=True))
    estimates_BV = kl_penalty(p_V.log()[None], q_V.log()[None], estimator)
    assert float((p_V * estimates_BV).sum()) == pytest.approx(exact, rel=1e-6)


def test_k3_is_never_negative_and_keeps_its_digits_where_policies_nearly_agree():
    log_ratio_BT = torch.cat([torch.linspace(-20, 20, 401), torch.tensor([1e-3, -1e-3])])[None]
    estimates_BT = kl_penalty(log_ratio_BT, torch.zeros(1, 403), "k3")
    assert (estimates_BT >= 0).all()
    # d^2 / 2 - d^3 / 6; the step from 1 in exp(-d) - 1 would round 5e-7 to a multiple of 6e-8.
    assert estimates_BT[0, -2:].tolist() == pytest.approx([4.998e-7, 5.002e-7], rel=1e-3)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_equal_policies_cost_nothing(estimator):
    logprobs_BT = torch.tensor([[-0.1, -3.0, -40.0]])
    assert torch.equal(kl_penalty(logprobs_BT, logprobs_BT, estimator), torch.zeros(1, 3))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'k4'; choose k1, k2, k3 or abs"):
        kl_penalty(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


REF_V = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
OLD_V = torch.tensor([0.25, 0.25, 0.4, 0.1], dtype=torch.float64)
LOGITS_V = torch.tensor([1.0, 0.3, -0.2, -1.5], dtype=torch.float64)


def _gradient(value_of) -> torch.Tensor:
    """The gradient of `value_of(log pi)` on the logits of pi."""
    logits_V = LOGITS_V.clone().requires_grad_()
    value_of(logits_V.log_softmax(0)).backward()
    return logits_V.grad


def _expected_loss(logprobs_V, sampled_V, estimator, importance_weight=False):
    """kl_loss in expectation: each token has the weight of its probability under the policy that samples."""
    given = (logprobs_V[None], REF_V.log()[None], sampled_V.log()[None], sampled_V[None])
    return kl_loss(*given, estimator=estimator, importance_weight=importance_weight)


TRUE_GRADIENTS = {
    "nothing": lambda logprobs_V: 0.0 * logprobs_V.sum(),
    "reverse": lambda logprobs_V: (logprobs_V.exp() * (logprobs_V - REF_V.log())).sum(),
    "forward": lambda logprobs_V: (REF_V * (REF_V.log() - logprobs_V)).sum(),
    "L1": lambda logprobs_V: (logprobs_V.exp() - REF_V).abs().sum(),
}


@pytest.mark.parametrize(("estimator", "whose"), [*zip(["k1", "k2", "k3", "abs"], TRUE_GRADIENTS, strict=True)])
def test_on_policy_each_estimate_in_the_loss_has_in_expectation_the_gradient_it_is_said_to_have(estimator, whose):
    policy_V = LOGITS_V.softmax(0)
    found_V = _gradient(lambda logprobs_V: _expected_loss(logprobs_V, policy_V, estimator))
    torch.testing.assert_close(found_V, _gradient(TRUE_GRADIENTS[whose]))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_importance_weight_gives_the_reverse_kls_gradient_also_off_policy(estimator):
    exact_V = _gradient(TRUE_GRADIENTS["reverse"])
    weighted_V = _gradient(lambda logprobs_V: _expected_loss(logprobs_V, OLD_V, estimator, importance_weight=True))
    torch.testing.assert_close(weighted_V, exact_V)
    biased_V = _gradient(lambda logprobs_V: _expected_loss(logprobs_V, OLD_V, estimator))
    assert (biased_V - exact_V).abs().max() > 0.05


def test_the_kl_term_by_hand_weighs_tokens_and_clears_what_does_not_count():
    # d = ln 2 and -ln 4: k3 is 1/2 - 1 + ln 2 and 4 - 1 - ln 4, its derivatives 1/2 and -3: never cut off by a bound.
    logprobs_BT = torch.tensor([[0.5, 0.2, 0.0]]).log().requires_grad_()
    ref_BT = torch.tensor([[0.25, 0.8, 0.0]]).log()
    weights_BT = torch.tensor([[0.25, 0.75, 0.0]])
    loss = kl_loss(
        logprobs_BT, ref_BT, torch.full((1, 3), torch.nan), weights_BT, estimator="k3", importance_weight=False
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.25 * (math.log(2) - 0.5) + 0.75 * (3 - math.log(4)))
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[0.25 * 0.5, -0.75 * 3.0, 0.0]]))


def test_far_from_the_reference_the_gradient_flows_on():
    logprobs_BT = torch.tensor([[-20.0, -0.5]], requires_grad=True)
    for estimator in ("k2", "k3"):
        kl_loss(
            logprobs_BT,
            torch.tensor([[-0.5, -20.0]]),
            logprobs_BT.detach(),
            torch.ones(1, 2),
            estimator=estimator,
            importance_weight=False,
        ).backward()
    k2, k3 = -19.5, 1 - math.exp(19.5)
    torch.testing.assert_close(logprobs_BT.grad, torch.tensor([[k2 + k3, 19.5 + 1 - math.exp(-19.5)]]))
