"""Lag in refits: what a step's samples were made by, against what it trains."""

import numpy as np
import pytest

from nemo_simplerl.trainer.versions import lags, version_after


@pytest.mark.parametrize(
    ("warmup_steps", "ahead", "expected"),
    [
        (0, 0, [0, 0, 0, 0, 0, 0]),
        (0, 1, [0, 1, 1, 1, 1, 1]),
        # Steps 1 to 3 train the critic, the fourth the first weights: what was sampled during it is one refit old.
        (3, 1, [0, 0, 0, 0, 1, 1]),
        (3, 0, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_lag_counts_refits_where_versions_jump_over_the_critics_warm_up(warmup_steps, ahead, expected):
    sampled_by = [version_after(max(step - 1 - ahead, 0), warmup_steps) for step in range(1, 7)]
    assert [int(lags(np.array([v]), k, warmup_steps)[0]) for k, v in enumerate(sampled_by, start=1)] == expected


def test_samples_of_several_versions_have_a_lag_each():
    assert lags(np.array([0, 4, 5, 6]), 7, 3).tolist() == [3, 2, 1, 0]
