"""The learning rate, update by update."""

import math

import pytest

from nemo_simplerl.algo.learning_rate import learning_rate


def _rates(total: int, style: str, warmup_fraction: float, lr: float = 1.0, min_lr: float = 0.1) -> list[float]:
    return [
        learning_rate(update, total, lr=lr, min_lr=min_lr, style=style, warmup_fraction=warmup_fraction)
        for update in range(total)
    ]


def test_warm_up_rises_from_a_first_step_above_zero_to_the_full_rate():
    assert _rates(10, "constant", 0.4) == [0.25, 0.5, 0.75] + 7 * [1.0]
    assert _rates(10, "cosine", 0.4)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_linear_falls_evenly_to_the_floor_at_the_last_update():
    assert _rates(7, "linear", 0.0) == pytest.approx([1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1])
    assert _rates(6, "linear", 0.5) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.7, 0.4, 0.1])


def test_cosine_is_half_a_wave():
    # 1/4, 1/2 and 3/4 of the way: (1 + cos) / 2 is 0.8536, 0.5, 0.1464 of the span 0.9 above the floor 0.1.
    quarter = (1 + math.cos(math.pi / 4)) / 2
    expected = [1.0, 0.1 + 0.9 * quarter, 0.55, 0.1 + 0.9 * (1 - quarter), 0.1]
    assert _rates(5, "cosine", 0.0) == pytest.approx(expected)


@pytest.mark.parametrize("style", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1])
def test_the_ends_are_exact(style, warmup_fraction):
    rates = _rates(30, style, warmup_fraction, lr=5e-7, min_lr=3e-8)
    assert max(rates) == 5e-7
    assert rates[-1] == 3e-8


def test_a_share_that_is_a_whole_number_of_updates_is_not_rounded_up():
    # 0.07 * 100 is 7.000000000000001.
    assert _rates(100, "linear", 0.07)[6] == 1.0
    assert _rates(100, "linear", 0.07)[5] == pytest.approx(6 / 7)


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("style", ["constant", "linear", "cosine"])
def test_updates_past_the_end_keep_the_last_rate(style, warmup_fraction):
    options = {"lr": 1.0, "min_lr": 0.1, "style": style, "warmup_fraction": warmup_fraction}
    assert learning_rate(17, 5, **options) == learning_rate(4, 5, **options)


def test_one_update_alone_uses_the_full_rate():
    assert _rates(1, "cosine", 0.0) == _rates(1, "linear", 0.5) == [1.0]


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="'wsd'; choose constant, linear or cosine"):
        learning_rate(0, 1, lr=1.0, min_lr=0.0, style="wsd", warmup_fraction=0.0)
