"""What a response loses for its length, by hand."""

from dataclasses import replace

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.reward.shaping import overlong_term, terms_of


@pytest.mark.parametrize(("tokens", "lost"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0)])
def test_the_last_tokens_before_the_limit_cost_in_proportion(tokens, lost):
    assert overlong_term(tokens, max_tokens=100, buffer_tokens=20, penalty=1.0) == pytest.approx(lost)
    assert overlong_term(tokens, max_tokens=100, buffer_tokens=20, penalty=0.5) == pytest.approx(0.5 * lost)


def test_no_term_is_there_unless_asked_for_and_none_that_is_nothing_has_a_sign():
    reward = compose(["experiment=quickstart"]).reward
    assert terms_of(48, 48, reward) == {}
    assert terms_of(48, 48, replace(reward, overlong_buffer_tokens=8)) == {"overlong": -1.0}
    assert str(terms_of(1, 48, replace(reward, overlong_buffer_tokens=8))["overlong"]) == "0.0"
