"""The watchdog in whole runs of a tiny model: an engine that hangs, a reward server that dies."""

import os
import threading
import time
from pathlib import Path

import pytest

from support.ranks import run_ranks
from support.servers import reward_server
from support.small_run import SMALL, train_here

pytestmark = pytest.mark.slow


def _train_with(faults: str, overrides: list[str]) -> None:
    os.environ["SIMPLERL_FAULTS"] = faults
    train_here(overrides)


def _report_of(run_dir: Path, faults: str, *overrides: str) -> str:
    """The report on a run on two ranks that the watchdog ends."""
    with pytest.raises(AssertionError, match="it died without an answer"):
        run_ranks(_train_with, 2, faults, [*SMALL, f"trainer.run_dir={run_dir}", *overrides])
    return (run_dir / "watchdog.txt").read_text()


def test_an_engine_that_hangs_is_named_with_its_rank(tmp_path, data):
    report = _report_of(
        tmp_path / "run", "hang@rollout#1,rank=1", *data, "trainer.watchdog.limits_s={rollout: 5, eval: 60}"
    )
    assert "trainer.watchdog.limits_s.rollout=5" in report
    assert "culprit: rank 1" in report and "is at rollout for" in report
    assert "rank 0 waits for it in a collective" in report


def test_a_reward_server_that_dies_is_told_as_the_wait_for_it(tmp_path, data):
    with reward_server() as server:

        def kill_before_the_first_step() -> None:
            while not (tmp_path / "run/metrics.jsonl").exists():
                time.sleep(0.05)
            server.process.kill()

        killer = threading.Thread(target=kill_before_the_first_step, daemon=True)
        killer.start()
        report = _report_of(
            tmp_path / "run",
            "delay@rollout#1,seconds=3",
            *data,
            f"reward.url={server.url}",
            "trainer.watchdog.limits_s={reward.grade: 5}",
        )
    assert "has been in reward.grade for" in report and "trainer.watchdog.limits_s.reward.grade=5" in report
    assert report.count("reward > reward.grade for") == 2
    assert "reward/serving/client.py" in report
