import math
from itertools import combinations

import pytest

from nemo_simplerl.eval.statistics import (
    binomial_error,
    differ,
    interval,
    majority,
    pass_at_k,
    standard_error,
)


def test_pass_at_k_counts_the_draws_of_k_that_hold_a_right_one():
    samples = [True, False, False, True, False]
    for k in range(1, 6):
        draws = list(combinations(samples, k))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)  # 7 of 10 pairs
    with pytest.raises(ValueError, match="between 1 and 5"):
        pass_at_k(5, 2, 6)


def test_the_vote_goes_to_the_most_frequent_answer_and_a_tie_to_the_first():
    assert majority(["3", "7", None, "7"]) == 1
    assert majority(["3", "7", "7", "3"]) == 0
    assert majority([None, None, "4"]) == 2
    assert majority([None]) is None


def test_the_interval_of_single_samples_is_wilsons():
    assert interval([1] * 10 + [0] * 20) == pytest.approx((0.1923, 0.5122), abs=5e-5)
    assert interval([0.0] * 30)[0] == 0.0
    assert interval([0.0] * 30)[1] == pytest.approx(0.1135, abs=5e-5)


def test_the_interval_of_several_samples_is_that_of_the_mean_over_problems():
    scores = [0.25, 0.5, 0.75, 0.5]
    error = math.sqrt((0.0625 + 0.0625) / 3 / 4)
    assert standard_error(scores) == pytest.approx(error)
    assert interval(scores) == pytest.approx((0.5 - 1.959964 * error, 0.5 + 1.959964 * error))


def test_aimes_26_7_and_33_3_cannot_be_told_apart_and_math_500s_can():
    assert not differ(0.267, binomial_error(0.267, 30), 0.333, binomial_error(0.333, 30))
    assert differ(0.524, binomial_error(0.524, 500), 0.772, binomial_error(0.772, 500))
