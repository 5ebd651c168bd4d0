"""GAE by hand, and against three plain loops in float64; lambdas of a row's own."""

import pytest
import torch

from nemo_simplerl.algo.gae import gae, length_adaptive_lambda
from support.kernels import KernelCount


def test_two_rows_by_hand():
    # Row 0: prompt, three response tokens, one pad. Row 1: a response of one token, then padding.
    mask_BT = torch.tensor([[0.0, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
    rewards_BT = torch.tensor([[0.0, 0, -0.1, 1, 0], [-0.5, 0, 0, 0, 0]])
    values_BT = torch.tensor([[9.0, 0.5, 0.2, 0.4, 9], [0.25, 9, 9, 9, 9]])
    # gamma 0.5, lambda 0.5, so gamma * lambda = 0.25.
    # delta[3] = 1 - 0.4 = 0.6;  delta[2] = -0.1 + 0.5 * 0.4 - 0.2 = -0.1;  delta[1] = 0.5 * 0.2 - 0.5 = -0.4
    # A[3] = 0.6;  A[2] = -0.1 + 0.25 * 0.6 = 0.05;  A[1] = -0.4 + 0.25 * 0.05 = -0.3875
    # Row 1: -0.5 - 0.25 = -0.75
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages_BT, torch.tensor([[0, -0.3875, 0.05, 0.6, 0], [-0.75, 0, 0, 0, 0]]))
    torch.testing.assert_close(returns_BT, torch.tensor([[0, 0.1125, 0.25, 1.0, 0], [-0.5, 0, 0, 0, 0]]))


def test_gamma_and_lambda_one_give_the_reward_still_to_come():
    rewards_BT = torch.tensor([[0.0, -0.5, 0.25, 1.0]])
    values_BT = torch.tensor([[3.0, 0.5, -2.0, 0.125]])
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, torch.ones(1, 4), gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns_BT, torch.tensor([[0.75, 0.75, 1.25, 1.0]]))
    torch.testing.assert_close(advantages_BT, torch.tensor([[-2.25, 0.25, 3.25, 0.875]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (0.0, 0.7)])
def test_equals_the_double_sum_of_the_paper_on_ragged_rows(gamma, lam):
    generator = torch.Generator().manual_seed(0)
    rewards_BT, values_BT = torch.randn(2, 7, 13, generator=generator)
    mask_BT = torch.zeros(7, 13)
    expected_BT = torch.zeros(7, 13, dtype=torch.float64)
    for row in range(7):
        start = int(torch.randint(0, 6, (), generator=generator))
        end = int(torch.randint(start + 1, 14, (), generator=generator))
        mask_BT[row, start:end] = 1
        for t in range(start, end):
            for later in range(t, end):
                next_value = float(values_BT[row, later + 1]) if later + 1 < end else 0.0
                delta = float(rewards_BT[row, later]) + gamma * next_value - float(values_BT[row, later])
                expected_BT[row, t] += (gamma * lam) ** (later - t) * delta
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages_BT.double(), expected_BT, atol=1e-5, rtol=0)
    torch.testing.assert_close(returns_BT.double(), expected_BT + values_BT.double() * mask_BT, atol=1e-5, rtol=0)


def test_what_stands_outside_the_response_changes_nothing():
    mask_BT = torch.tensor([[0.0, 1, 1, 0]])
    values_BT, rewards_BT = torch.tensor([[0.0, 1, 2, 0]]), torch.tensor([[0.0, 0, 1, 0]])
    clean = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.9)
    spoilt_BT = torch.tensor([[torch.nan, 0, 0, torch.inf]])
    spoilt = gae(rewards_BT + spoilt_BT, values_BT + spoilt_BT, mask_BT, gamma=0.9, lam=0.9)
    assert all(torch.equal(one, other) for one, other in zip(clean, spoilt, strict=True))


def test_a_long_row_takes_few_kernels_and_keeps_its_digits():
    rewards_BT, values_BT = torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones(3, 1000)
    with KernelCount() as count:
        advantages_BT, _ = gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=1.0)
    assert count.kernels < 40  # one of each column would be 4,000
    expected_BT = rewards_BT.double().flip(1).cumsum(1).flip(1) - values_BT.double()
    torch.testing.assert_close(advantages_BT.double(), expected_BT, atol=2e-5, rtol=0)


def test_a_lambda_for_each_row_gives_what_each_row_gets_alone():
    rewards_BT, values_BT = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones(3, 9)
    lam_B1 = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    found = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=lam_B1)
    for row, lam in enumerate((0.0, 0.5, 1.0)):
        one = slice(row, row + 1)
        alone = gae(rewards_BT[one], values_BT[one], mask_BT[one], gamma=0.9, lam=lam)
        for of_rows, of_row in zip(found, alone, strict=True):
            assert of_rows.dtype == torch.float32
            torch.testing.assert_close(of_rows[one], of_row, atol=1e-6, rtol=0)


def test_lambda_follows_the_length_and_stays_at_0_below_one_over_alpha():
    mask_BT = torch.zeros(5, 400)
    for row, length in enumerate((400, 40, 20, 1, 0)):
        mask_BT[row, :length] = 1
    # 1 - 1 / (0.05 * 400) = 0.95; 1 - 1 / 2; 1 - 1 / 1; 1 - 20, clamped; no token at all
    expected_B1 = torch.tensor([[0.95], [0.5], [0.0], [0.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(length_adaptive_lambda(mask_BT, alpha=0.05), expected_B1)


def test_float64_stays_float64():
    values_BT = torch.full((1, 3), 0.1, dtype=torch.float64)
    advantages_BT, _ = gae(values_BT, values_BT, torch.ones(1, 3), gamma=1.0, lam=1.0)
    torch.testing.assert_close(advantages_BT, torch.tensor([[0.2, 0.1, 0.0]], dtype=torch.float64), atol=1e-15, rtol=0)
