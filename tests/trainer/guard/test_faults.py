"""Faults on demand: how their text is read, when they strike, and that a run passes every fault point."""

import errno
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_simplerl.config.load import load
from nemo_simplerl.trainer.guard.faults import POINTS, Faults, fault_point, installed
from nemo_simplerl.trainer.loop import train
from nemo_simplerl.trainer.open_run import open_run
from nemo_simplerl.trainer.setup.world import join_world
from support.ranks import run_ranks
from support.small_run import SMALL


def _fails_at(faults: Faults, point: str, visits: int) -> list[int]:
    failed = []
    with installed(faults):
        for visit in range(1, visits + 1):
            try:
                fault_point(point)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failed.append(visit)
    return failed


def test_a_fault_strikes_at_its_visit_to_its_point_on_its_rank():
    text = "fail@reward#3,rank=1; fail@reward#5 ;fail@refit#1"
    assert _fails_at(Faults.parse(text, rank=1), "reward", 6) == [3, 5]
    assert _fails_at(Faults.parse(text, rank=0), "reward", 6) == [5]
    assert _fails_at(Faults.parse(text, rank=0), "refit", 2) == [1]
    assert _fails_at(Faults.parse("", rank=0), "reward", 6) == []


def test_a_signal_reaches_this_process_and_a_delay_takes_its_time():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        Faults.parse("signal@log#1,name=USR1", 0).reach("log")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
    begun = time.monotonic()
    Faults.parse("delay@log#1,seconds=0.2", 0).reach("log")
    assert time.monotonic() - begun >= 0.2


def test_a_point_does_nothing_without_faults_and_counts_the_visits_of_all_threads_with_them():
    fault_point("log")
    with installed(Faults()) as outer:
        with installed(Faults()) as inner, ThreadPoolExecutor(4) as threads:
            list(threads.map(fault_point, ["eval"] * 200))
        fault_point("refit")
    fault_point("log")
    assert (outer.visits, inner.visits) == ({"refit": 1}, {"eval": 200})


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_kill_and_stop_are_real(action, number):
    child = os.fork()
    if child == 0:
        Faults.parse(f"{action}@eval#1", 0).reach("eval")
        os._exit(0)
    _, status = os.waitpid(child, os.WUNTRACED)
    assert (os.WSTOPSIG if action == "stop" else os.WTERMSIG)(status) == number
    if action == "stop":
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kill", "not of the form ACTION@POINT#N"),
        ("kill@rollout", "not of the form"),
        ("kill@rollout#0", "not of the form"),
        ("maim@rollout#1", "the actions are kill, stop, hang, delay, fail, signal"),
        ("kill@lunch#1", "the points are rollout, reward, .*journal.write"),
        ("delay@rollout#1", "delay takes rank and seconds"),
        ("delay@rollout#1,seconds=x", "seconds a number"),
        ("kill@rollout#1,seconds=1", "kill takes rank and nothing else"),
        ("signal@rollout#1,name=HUP", "the signals are TERM, USR1, INT"),
        ("kill@rollout#1,rank=one", "rank is a whole number"),
    ],
)
def test_text_that_means_nothing_is_refused_with_what_would(text, message):
    with pytest.raises(ValueError, match=f"SIMPLERL_FAULTS holds {text!r}.*{message}"):
        Faults.parse(f"kill@rollout#1;{text}", 0)


def _visits(overrides: list[str]) -> dict[str, int]:
    config = load(overrides, world_size=1)
    with join_world(config) as world, open_run(config, world, time.monotonic()) as run, installed(Faults()) as faults:
        train(run)
        return faults.visits


def test_a_run_passes_every_point(tmp_path: Path, data):
    overrides = [*SMALL, *data, f"trainer.run_dir={tmp_path}", "trainer.max_steps=2", "trainer.save_every=1"]
    (visits,) = run_ranks(_visits, 1, [*overrides, "algo.kl_coef=0.01"])
    assert visits.keys() == set(POINTS)
    assert [visits[point] for point in ("rollout", "critic.update", "actor.update", "log.metrics")] == [2, 4, 4, 3]
    assert [visits[point] for point in ("journal.write", "checkpoint.rename", "checkpoint.latest")] == [4, 2, 2]
