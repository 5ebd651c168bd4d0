"""Durations in NeMo's form, and the errors for other forms."""

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import load
from nemo_simplerl.durations import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:03:30:00", 12600), ("00:00:00:01", 1), ("02:00:00:00", 172800), ("10:23:59:59", 950399)],
)
def test_days_hours_minutes_and_seconds_add_up(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["03:30:00", "00:24:00:00", "00:00:60:00", "00:00:00:00", "3h", "", "00:00:00:1", "-1"]
)
def test_another_form_is_refused_where_it_is_given(text):
    with pytest.raises(ConfigErrors) as raised:
        load(["experiment=quickstart", f"trainer.max_time='{text}'"], 1)
    (problem,) = raised.value.problems
    assert problem.startswith(f"trainer.max_time={text!r} is n") and ("00:03:30:00" in problem or "null" in problem)


def test_it_may_be_given_without_quotes_or_left_out():
    assert load(["experiment=quickstart", "trainer.max_time=10:00:30:00"], 1).trainer.max_time == "10:00:30:00"
    assert load(["experiment=quickstart"], 1).trainer.max_time is None
