"""KL estimators by hand, and their expectation over a distribution small enough to enumerate."""

import math

import pytest
import torch

from nemo_simplerl.algo.kl import kl_penalty


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
