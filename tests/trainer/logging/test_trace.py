"""The time line that each rank writes of its phases and waits."""

import json

import pytest

from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.logging.trace import VARIABLE, traced


def test_phases_and_the_waits_inside_them_are_events_that_nest(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    timer = PhaseTimer()
    with traced(tmp_path, 3):
        with timer("refit"), waiting("refit.broadcast"):
            pass
        with pytest.raises(OSError), waiting("update"):
            raise OSError
    with waiting("after"):
        pass
    inner, outer, failed = map(json.loads, (tmp_path / "trace/rank_3.jsonl").read_text().splitlines())
    assert [inner["name"], outer["name"], failed["name"]] == ["refit.broadcast", "refit", "update"]
    assert {event["pid"] for event in (inner, outer, failed)} == {3}
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1
    assert outer["ts"] + outer["dur"] <= failed["ts"] + 1


def test_nothing_is_written_unasked_and_a_file_that_cannot_be_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with traced(tmp_path, 0), waiting("rollout"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "trace").touch()
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(ValueError, match=f"{VARIABLE}: .*trace/rank_0.jsonl cannot be written: "), traced(tmp_path, 0):
        pass
