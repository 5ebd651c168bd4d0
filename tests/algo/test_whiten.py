"""Whitening and its moments, on one rank and over two; over two, comparisons within a group as well."""

import pytest
import torch
import torch.distributed as dist

from nemo_simplerl.algo.advantages import group_advantages, leave_one_out_advantages, masked_moments, whiten
from nemo_simplerl.algo.loss import explained_variance
from support.ranks import run_ranks


def test_whiten_by_hand():
    # 1, 2, 6 have mean 3 and biased variance (4 + 1 + 9) / 3.
    advantages_BT = torch.tensor([[1.0, 2.0, 100.0], [torch.nan, 6.0, torch.inf]])
    mask_BT = torch.tensor([[1.0, 1, 0], [0, 1, 0]])
    scale = (14 / 3) ** -0.5
    expected_BT = torch.tensor([[-2 * scale, -scale, 0], [0, 3 * scale, 0]])
    torch.testing.assert_close(whiten(advantages_BT, mask_BT), expected_BT)


def test_equal_advantages_become_zeros():
    assert torch.equal(whiten(torch.full((3, 5), 0.1), torch.ones(3, 5)), torch.zeros(3, 5))


def test_a_variance_below_eps_is_raised_to_it():
    # Deviations of 0.001 have variance 1e-6, raised to 1e-4: the result is 0.001 / 0.01.
    whitened_BT = whiten(torch.tensor([[-0.001, 0.001]]), torch.ones(1, 2), eps=1e-4)
    torch.testing.assert_close(whitened_BT, torch.tensor([[-0.1, 0.1]]))


def test_an_empty_mask_gives_zeros():
    assert torch.equal(whiten(torch.ones(2, 2), torch.zeros(2, 2)), torch.zeros(2, 2))


def test_a_large_common_offset_costs_no_digits():
    offsets_BT = torch.tensor([[-1.0, 1.0, -1.0, 1.0]])
    torch.testing.assert_close(whiten(offsets_BT + 2.0**20, torch.ones(1, 4)), offsets_BT)


def test_explained_variance_by_hand():
    returns_BT, mask_BT = torch.tensor([[1.0, 3.0, torch.nan]]), torch.tensor([[1.0, 1.0, 0.0]])
    # Var(returns) = 1. Errors 0 and 1 have variance 1/4, errors -2 and 2 of a reversed critic 4.
    for values, expected in (([1.0, 3.0], 1.0), ([1.0, 2.0], 0.75), ([7.0, 7.0], 0.0), ([3.0, 1.0], -3.0)):
        values_BT = torch.tensor([[*values, torch.inf]])
        assert float(explained_variance(values_BT, returns_BT, mask_BT)) == pytest.approx(expected)
    assert float(explained_variance(torch.rand(1, 3), torch.ones(1, 3), mask_BT)) == 0.0


def _rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    advantages_BT, values_BT = torch.randn(2, 5, 9, generator=generator) * 3 + 1
    return advantages_BT, values_BT, (torch.rand(5, 9, generator=generator) < 0.6).float()


def _compared(rows: slice, group=None) -> torch.Tensor:
    """Advantages [2, B] of some rows of two groups, whose samples lie on both ranks: GRPO's and RLOO's."""
    scores_B, groups_B = torch.tensor([0.1, 0.7, -0.4, 0.3, 0.9])[rows], torch.tensor([0, 1, 1, 0, 0])[rows]
    divided_B = group_advantages(scores_B, groups_B, 2, divide_by_std=True, group=group)
    return torch.stack([divided_B, leave_one_out_advantages(scores_B, groups_B, 2, group)])


def _whiten_my_rows() -> tuple:
    """Rank 0 holds four rows and rank 1 holds one."""
    dist.init_process_group("gloo")
    rows = slice(0, 4) if dist.get_rank() == 0 else slice(4, 5)
    advantages_BT, values_BT, mask_BT = (tensor[rows] for tensor in _rows())
    group = dist.group.WORLD
    return (
        whiten(advantages_BT, mask_BT, group),
        masked_moments(advantages_BT, mask_BT, group),
        explained_variance(values_BT, advantages_BT, mask_BT, group),
        _compared(rows, group),
    )


def test_two_ranks_equal_one_rank_with_all_the_rows():
    advantages_BT, values_BT, mask_BT = _rows()
    per_rank = run_ranks(_whiten_my_rows, 2)
    whitened_BT = torch.cat([answer[0] for answer in per_rank])
    assert torch.equal(whitened_BT, whiten(advantages_BT, mask_BT))
    assert torch.equal(torch.cat([answer[3] for answer in per_rank], dim=1), _compared(slice(None)))
    for _, moments, explained, _ in per_rank:
        torch.testing.assert_close(moments, masked_moments(advantages_BT, mask_BT))
        torch.testing.assert_close(explained, explained_variance(values_BT, advantages_BT, mask_BT))
