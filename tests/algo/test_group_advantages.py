"""Advantages without a critic, worked by hand: groups of three, equal scores, one response, one token, masked rows."""

import pytest
import torch

from nemo_simplerl.algo.advantages import (
    equal_groups_share,
    group_advantages,
    leave_one_out_advantages,
    rewards_to_go,
    whiten,
)

# Group 0 has scores 1, 0, 0.5 (mean 0.5, squares 0.25 + 0.25); group 1 equal ones; group 2 a single one; 3 is empty.
SCORES_B = torch.tensor([1.0, 0.1, 0.0, -1.0, 0.5, 0.1])
GROUPS_B = torch.tensor([0, 1, 0, 2, 0, 1])


def test_scores_above_their_groups_mean_are_dr_grpos():
    above_B = group_advantages(SCORES_B, GROUPS_B, 4, divide_by_std=False)
    assert above_B.tolist() == [0.5, 0, -0.5, 0, 0, 0] and above_B.dtype == torch.float32


def test_divided_by_the_samples_deviation_they_are_grpos():
    # (0.25 + 0.25) / (3 - 1) is the variance of group 0, so its deviation is 0.5. Equal scores and one alone stay 0.
    advantages_B = group_advantages(SCORES_B, GROUPS_B, 4, divide_by_std=True)
    scale = 0.5 / (0.5 + 1e-6)
    torch.testing.assert_close(advantages_B, torch.tensor([scale, 0, -scale, 0, 0, 0]), rtol=1e-6, atol=0)
    two_B = group_advantages(torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), 1, divide_by_std=True)
    torch.testing.assert_close(two_B, torch.tensor([-0.70711, 0.70711]), rtol=1e-5, atol=0)


def test_scores_above_the_mean_of_the_others_are_rloos():
    # 1 - (0 + 0.5) / 2, 0 - (1 + 0.5) / 2, 0.5 - (1 + 0) / 2.
    advantages_B = leave_one_out_advantages(SCORES_B, GROUPS_B, 4)
    torch.testing.assert_close(advantages_B, torch.tensor([0.75, 0, -0.75, 0, 0, 0]))


@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_equal_scores_of_any_kind_and_number_give_exact_zeros(count):
    for score in (0.1, 1 / 3, -1e-30, 1e6):
        scores_B, groups_B = torch.full((count,), score), torch.zeros(count, dtype=torch.int64)
        for advantages_B in (
            group_advantages(scores_B, groups_B, 1, divide_by_std=True),
            leave_one_out_advantages(scores_B, groups_B, 1),
        ):
            assert torch.equal(advantages_B, torch.zeros(count))


def test_the_share_of_equal_groups_counts_the_groups_that_are_there():
    assert float(equal_groups_share(SCORES_B, GROUPS_B, 4)) == pytest.approx(2 / 3)


def test_rewards_to_go_of_a_long_a_short_and_a_masked_row():
    rewards_BT = torch.tensor([[9.0, 1.0, 2.0, 4.0, torch.nan], [9, 9, -1, 9, 9], [1, 1, 1, 1, 1]])
    mask_BT = torch.tensor([[0.0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    # 4; 2 + 4 / 2; 1 + 4 / 2. One token has its own reward, a row without any nothing.
    expected_BT = torch.tensor([[0.0, 3.0, 4.0, 4.0, 0.0], [0, 0, -1, 0, 0], [0, 0, 0, 0, 0]])
    assert torch.equal(rewards_to_go(rewards_BT, mask_BT, 0.5), expected_BT)


def test_reinforce_pp_whitens_them_by_tokens_so_a_row_weighs_by_its_length():
    # Rewards 1 over three tokens and -1 over one: mean 1/2, biased variance (3 * 1/4 + 9/4) / 4 = 3/4.
    mask_BT = torch.tensor([[1.0, 1, 1], [0, 1, 0]])
    to_go_BT = rewards_to_go(torch.tensor([[0.0, 0, 1], [5, -1, 5]]), mask_BT, 1.0)
    scale = 0.75**-0.5
    expected_BT = torch.tensor([[0.5, 0.5, 0.5], [0, -1.5, 0]]) * scale
    torch.testing.assert_close(whiten(to_go_BT, mask_BT), expected_BT)
