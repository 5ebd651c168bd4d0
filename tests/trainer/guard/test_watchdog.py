"""Ranks that die, freeze, fail and hang, on real processes: all are gone soon, and the report names the culprit."""

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest

from support.fork_server import fork_context
from support.ports import free_port

SCRIPT = Path(__file__).with_name("watched_rank.py")
LIMITS = ["trainer.watchdog.dead_after_s=6", "trainer.watchdog.limits_s={reward: 5, rollout: 8}"]
APART = "actor,critic,engine"  # ranks 0, 1 and 2
OF_ROLES = ["actor_update", "values", "rollout"]  # a phase of each
AT_MOST_S = 90.0  # of which a busy machine may take a third for two ranks to import torch


@dataclass
class Ended:
    statuses: list[int]
    errors: str  # of all ranks
    report: str  # watchdog.txt; empty where there is none
    orphans: list[str]


def run_watched(
    folder: Path,
    *,
    torchrun: bool,
    env: dict[str, str] | None = None,
    world_size: int = 2,
    overrides: Sequence[str] = (),
) -> Ended:
    """Run the script on some ranks until the last has ended; kills and reports what is left after a minute.

    torchrun: it starts them; else each is forked from a server that has imported everything, in a session of its own.
    """
    token = uuid.uuid4().hex
    env = {"OMP_NUM_THREADS": "1", **(env or {})}
    folder.mkdir(exist_ok=True)
    arguments = [str(folder), *LIMITS, *overrides]
    port = str(free_port())
    if torchrun:
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={world_size}", f"--master_port={port}"]
        with (folder / "stderr_0.txt").open("w") as log:
            started = [
                subprocess.Popen(
                    [sys.executable, *launcher, str(SCRIPT), *arguments],
                    env={**os.environ, **env, "SIMPLERL_TEST": token},
                    stderr=log,
                    stdout=log,
                )
            ]
        status = subprocess.Popen.poll
    else:
        world = env | {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = [
            fork_context().Process(
                target=_watched_rank,
                args=(folder / f"stderr_{rank}.txt", world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, arguments),
            )
            for rank in range(world_size)
        ]
        for process in started:
            process.start()
        status = attrgetter("exitcode")
    deadline = time.monotonic() + AT_MOST_S
    while any(status(process) is None for process in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    orphans = _alive(token, {process.pid for process in started})
    for pid in orphans:
        os.kill(int(pid.split()[0]), 9)
    for process in started:
        process.wait() if torchrun else process.join()
    errors = "".join((folder / f"stderr_{k}.txt").read_text() for k in range(len(started)))
    path = folder / "watchdog.txt"
    return Ended([status(process) for process in started], errors, path.read_text() if path.exists() else "", orphans)


def _watched_rank(output: Path, env: dict[str, str], arguments: list[str]) -> None:
    os.setsid()  # what this rank starts can be told by its session
    with output.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ |= env
    sys.path.insert(0, str(SCRIPT.parent))
    from watched_rank import main

    main(*arguments)


def _alive(token: str, sessions: set[int]) -> list[str]:
    """`pid command` of every process that was started with the token, or in one of the sessions."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            is_ours = int(fields[3]) in sessions or token.encode() in (folder / "environ").read_bytes()
            if fields[0] not in "ZX" and is_ours:
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
@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("kill", r"\(pid \d+ on .*\) is dead"),
        ("stop", r"\(pid \d+ on .*\) gave no sign of life for"),
        ("hang", r"\(pid \d+ on .*\) is at {phase} for \d+ s, and rank .* waits? for it"),
    ],
    ids=["killed", "frozen", "hung"],
)
def test_where_roles_live_apart_the_rank_and_its_role_are_named(tmp_path, action, words):
    limits = "trainer.watchdog.limits_s={rollout: 5, values: 5, actor_update: 5}"

    def ended_of(rank: int) -> Ended:
        env = {"PLACES": APART, "SIMPLERL_FAULTS": f"{action}@{OF_ROLES[rank]}#2,rank={rank}"}
        return run_watched(tmp_path / str(rank), torchrun=False, env=env, world_size=3, overrides=[limits])

    with ThreadPoolExecutor(3) as pool:
        for rank, ended in enumerate(pool.map(ended_of, range(3))):
            assert ended.orphans == [] and all(ended.statuses)
            culprit = f"culprit: rank {rank} \\({APART.split(',')[rank]}\\) {words.format(phase=OF_ROLES[rank])}"
            assert re.search(culprit, ended.report), ended.report + ended.errors
            assert ended.report.count("culprit:") == 1


@pytest.mark.slow
def test_a_role_that_works_long_within_its_limits_is_waited_for(tmp_path):
    env = {"PLACES": APART, "SIMPLERL_FAULTS": "delay@rollout#1,rank=2,seconds=10"}
    limits = ["trainer.watchdog.limits_s={rollout: 30}", "trainer.distributed_timeout_s=5"]
    ended = run_watched(tmp_path, torchrun=False, env=env, world_size=3, overrides=limits)
    assert (ended.statuses, ended.orphans, ended.report) == ([0, 0, 0], [], ""), ended.errors + ended.report


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
