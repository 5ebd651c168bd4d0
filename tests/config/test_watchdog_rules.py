import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import load
from nemo_simplerl.config.watchdog_rules import NAMES
from nemo_simplerl.trainer.faults import PHASES


def _problems(limits: str) -> list[str]:
    try:
        load(["experiment=quickstart", f"trainer.watchdog.limits_s={limits}"], world_size=1)
    except ConfigErrors as errors:
        return errors.problems
    return []


def test_every_phase_can_be_limited():
    assert set(PHASES) <= set(NAMES)
    assert _problems("{rollout: 60, engine.generate: 0.5, gather.completions: 9}") == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [("{rolout: 60}", "Did you mean trainer"), ("{rollout: -1}", "seconds above 0"), ("{rollout: soon}", "no time")],
)
def test_a_limit_on_nothing_or_of_no_time_is_refused(limits, words):
    (problem,) = _problems(limits)
    assert words.replace(" trainer", "") in problem
