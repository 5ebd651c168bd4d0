"""The reward of each token: where the score lands, and what the KL term leaves alone."""

import pytest
import torch

from nemo_simplerl.algo.rewards import token_rewards

# Row 0 ends in an EOS and is padded; row 1 was cut by the length limit and fills the row; row 2 is one token.
MASK_BT = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]])
KL_BT = torch.tensor([[5.0, 0.5, 1.0, 5.0], [5.0, 5.0, -1.0, 2.0], [5.0, 0.25, 5.0, 5.0]])
SCORES_B = torch.tensor([1.0, -0.5, -1.0])


def test_the_score_lands_on_the_last_response_token_and_the_kl_on_every_one():
    rewards_BT = token_rewards(SCORES_B, KL_BT, MASK_BT, 0.1)
    expected_BT = torch.tensor([[0, -0.05, 0.9, 0], [0, 0, 0.1, -0.7], [0, -1.025, 0, 0]])
    torch.testing.assert_close(rewards_BT, expected_BT)


def test_the_clip_bounds_the_score_and_not_the_kl():
    rewards_BT = token_rewards(10 * SCORES_B, KL_BT, MASK_BT, 10.0, reward_clip=3.0)
    expected_BT = torch.tensor([[0, -5.0, 3 - 10.0, 0], [0, 0, 10.0, -3 - 20.0], [0, -3 - 2.5, 0, 0]])
    torch.testing.assert_close(rewards_BT, expected_BT)


def test_without_a_kl_coefficient_only_the_score_remains():
    rewards_BT = token_rewards(SCORES_B, KL_BT, MASK_BT, 0.0)
    assert rewards_BT.tolist() == [[0, 0, 1, 0], [0, 0, 0, -0.5], [0, -1, 0, 0]]


def test_nan_and_inf_outside_the_response_stay_outside():
    spoilt_BT = torch.where(MASK_BT > 0, KL_BT, torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan]))
    clean_BT = token_rewards(SCORES_B, KL_BT, MASK_BT, 0.1)
    assert torch.equal(token_rewards(SCORES_B, spoilt_BT, MASK_BT, 0.1), clean_BT)


def test_a_row_without_a_response_is_named():
    mask_BT = MASK_BT.clone()
    mask_BT[1] = 0
    with pytest.raises(ValueError, match=r"rows \[1\] have no response token"):
        token_rewards(SCORES_B, KL_BT, mask_BT, 0.1)
