"""No trick is paid: every way to change a value that looks like the gold answer, on fifty gold answers each."""

import pytest

from nemo_simplerl.reward.comparing.equivalence import equivalent
from support.tricks import GOLDS, TRICKS, choice_pairs, trick_pairs


@pytest.mark.parametrize("kind", TRICKS)
def test_no_trick_is_right_for_any_of_fifty_golds(kind):
    assert len(set(GOLDS)) == 50
    paid = [(name, gold, answer) for name, gold, answer in trick_pairs(kind) if equivalent(gold, answer)]
    assert paid == []


def test_a_choice_is_not_chosen_by_an_answer_that_says_more_than_its_letter_and_text():
    assert [pair for pair in choice_pairs() if equivalent(*pair)] == []
