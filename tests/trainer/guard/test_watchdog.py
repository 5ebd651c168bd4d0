"""Ranks that die, freeze, fail and hang, on real processes: all are gone soon, and the report names the culprit."""

import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.ports import free_port

SCRIPT = Path(__file__).with_name("watched_rank.py")
LIMITS = ["trainer.watchdog.dead_after_s=6", "trainer.watchdog.limits_s={reward: 5, rollout: 8}"]
AT_MOST_S = 90.0  # of which a busy machine may take a third for two ranks to import torch


@dataclass
class Ended:
    statuses: list[int]
    errors: str  # of all ranks
    report: str  # watchdog.txt; empty where there is none
    orphans: list[str]


def run_watched(folder: Path, *, torchrun: bool, env: dict[str, str] | None = None, world_size: int = 2) -> Ended:
    """Run the script on some ranks until the last has ended; kills and reports what is left after a minute."""
    token = uuid.uuid4().hex
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SIMPLERL_TEST": token, **(env or {})}
    arguments = [str(SCRIPT), str(folder), *LIMITS]
    port = str(free_port())
    if torchrun:
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={world_size}", f"--master_port={port}"]
        commands = [([sys.executable, *launcher, *arguments], env)]
    else:
        world = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
        commands = [([sys.executable, *arguments], env | world | rank) for rank in ranks]
    logs = [(folder / f"stderr_{k}.txt").open("w+") for k in range(len(commands))]
    processes = [
        subprocess.Popen(command, env=env, stderr=log, stdout=log)
        for (command, env), log in zip(commands, logs, strict=True)
    ]
    deadline = time.monotonic() + AT_MOST_S
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    orphans = _alive(token)
    for pid in orphans:
        os.kill(int(pid.split()[0]), 9)
    statuses = [process.wait() for process in processes]
    for log in logs:
        log.seek(0)
    errors = "".join(log.read() for log in logs)
    path = folder / "watchdog.txt"
    return Ended(statuses, errors, path.read_text() if path.exists() else "", orphans)


def _alive(token: str) -> list[str]:
    """`pid command` of every process that was started with the token."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and token.encode() in (folder / "environ").read_bytes():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()}")
        except (OSError, PermissionError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True], ids=["rank 0 hosts the store", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("fault", "words"),
    [("kill@actor_update#2", "is dead"), ("stop@actor_update#2", "gave no sign of life for")],
    ids=["killed", "frozen"],
)
def test_a_rank_that_is_dead_or_frozen_ends_all_and_is_named(tmp_path, torchrun, rank, fault, words):
    ended = run_watched(tmp_path, torchrun=torchrun, env={"SIMPLERL_FAULTS": f"{fault},rank={rank}"})
    assert ended.orphans == []
    assert re.search(rf"culprit: rank {rank} \(pid \d+ on .*\) {words}", ended.report), ended.report + ended.errors
    assert f"culprit: rank {rank}" in ended.errors
    assert torchrun or ended.statuses[1 - rank] == 70
    assert "actor_update" in ended.report


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_though_it_lives(tmp_path):
    ended = run_watched(tmp_path, torchrun=True, env={"SIMPLERL_FAULTS": "hang@rollout#2,rank=1"})
    assert ended.orphans == []
    assert re.search(r"culprit: rank 1 .* is at rollout for \d+ s, and rank 0 waits", ended.report), ended.report
    assert "trainer.watchdog.limits_s.rollout=8" in ended.report
    assert "faults.py" in ended.report and "gather.completions" in ended.report


@pytest.mark.slow
def test_a_rank_that_fails_keeps_its_traceback_and_ends_the_others(tmp_path):
    ended = run_watched(tmp_path, torchrun=False, env={"FAILS": "1"})
    assert ended.orphans == [] and ended.statuses == [70, 1]
    assert "culprit: rank 1" in ended.report and "failed first: RuntimeError: the loss is sour" in ended.report
    assert ended.errors.count("Traceback (most recent call last)") >= 1
    assert "watched_rank.py" in ended.report


@pytest.mark.slow
def test_what_fails_on_every_rank_and_wrong_input_stay_what_they_are(tmp_path):
    for env, words in (({"FAILS": "0,1"}, "the loss is sour"), ({"WRONG": "1"}, "wrong input")):
        ended = run_watched(tmp_path, torchrun=False, env=env)
        assert (ended.statuses, ended.orphans, ended.report) == ([1, 1], [], "")
        assert ended.errors.count(words) >= 2


@pytest.mark.slow
def test_a_slow_run_that_lives_trips_nothing(tmp_path):
    faults = "delay@rollout#1,rank=1,seconds=4;delay@reward#2,rank=0,seconds=3;delay@actor_update#2,rank=1,seconds=7"
    ended = run_watched(tmp_path, torchrun=True, env={"SIMPLERL_FAULTS": faults})
    assert (ended.statuses, ended.orphans, ended.report) == ([0], [], ""), ended.errors
    assert ended.errors.count("the end") == 2
