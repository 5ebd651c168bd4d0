"""Kills a small run again and again with SIGKILL, and compares its end with that of a run left alone. One line of JSON.

usage: scripts/bench/kills.py [--kills 20] [--ranks 1] [--seed 1] [--folder FOLDER] [KEY=VALUE ...]

Each kill strikes at a random point of trainer.guard.faults, at a random visit to it, on a random rank of the role that
passes it (placement.* among the KEY=VALUE); the run is then started again. After KILLS_A_RUN kills a run is left to
finish, and another begins until the kills are used up. Every finished run must have the weights, the optimizer's state,
the samples, the evaluations and, timings aside, the metrics of the run left alone, byte for byte. Exits with 1 where
one has not.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

from nemo_simplerl.data.generated import arithmetic

KILLS_A_RUN = 5
RUN = [
    "experiment=quickstart",
    "model.create.hidden_size=32",
    "model.create.num_layers=2",
    "model.create.ffn_hidden_size=48",
    "actor.global_batch_size=8",
    "actor.micro_batch_size=4",
    "critic.global_batch_size=8",
    "critic.micro_batch_size=4",
    "data.rollout_batch_size=4",
    "data.eval_limit=6",
    "rollout.max_prompt_tokens=100",
    "rollout.max_response_tokens=12",
    "reward.num_workers=1",
    "sft.output=null",
    "trainer.max_steps=6",
    "trainer.eval_every=3",
    "trainer.save_every=2",
    "trainer.tensorboard=false",
]
# How often about each point is passed between two checkpoints of such a run.
VISITS = {
    "rollout": 3,
    "reward": 3,
    "critic.update": 5,
    "actor.update": 5,
    "refit": 3,
    "eval": 1,
    "log.metrics": 3,
    "checkpoint.write": 18,
    "checkpoint.rename": 1,
    "checkpoint.latest": 1,
    "journal.write": 5,
}
# The role whose ranks alone pass a point, where it has ranks of its own; any other is passed by all.
ROLES = {
    "rollout": "engine",
    "reward": "engine",
    "journal.write": "engine",
    "critic.update": "critic",
    "actor.update": "actor",
}
ON_FIRST_RANK = ("checkpoint.rename", "checkpoint.latest", "journal.write", "log.metrics")
OF_THE_ENGINE = {f"consistency/{name}" for name in ("logprob_diff_mean", "logprob_diff_max", "share_beyond")}
_PRELOAD = ["torch", "transformers", "nemo_simplerl.trainer.start", "nemo_simplerl.cli.report"]


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kills"))
    multiprocessing.set_forkserver_preload(_PRELOAD)
    begun = time.monotonic()
    points, differences = kill_runs(folder, args.kills, args.ranks, args.seed, args.overrides)
    seconds = round(time.monotonic() - begun, 1)
    told = {"ranks": args.ranks, "kills": sum(points.values()), "at": points, "seconds": seconds}
    print(json.dumps(told | {"different": differences}))
    if args.folder is None:
        shutil.rmtree(folder)
    return int(bool(differences))


def kill_runs(folder: Path, kills: int, ranks: int, seed: int, overrides: Sequence[str] = ()) -> tuple[dict, list[str]]:
    """The number of kills at each fault point, and the files that differ from those of the run left alone."""
    alone = folder / "alone"
    data = problems_in(folder)
    assert start(alone, [*data, *overrides], ranks) == [0] * ranks, (alone / "output.txt").read_text()
    rng = random.Random(seed)
    points: Counter[str] = Counter()
    differences: list[str] = []
    while sum(points.values()) < kills:
        run_dir = folder / f"killed_after_{sum(points.values())}"
        for fault in faults(rng, ranks, kills - sum(points.values()), places_in(overrides)):
            statuses = start(run_dir, [*data, *overrides], ranks, fault)
            if statuses == [0] * ranks:
                break
            if not fault or -signal.SIGKILL not in statuses:
                raise RuntimeError(f"{run_dir} ended with {statuses}: {(run_dir / 'output.txt').read_text()[-3000:]}")
            points[fault.split("@")[1].split("#")[0]] += 1
        differences += [f"{run_dir.name}/{name}" for name in different(alone, run_dir)]
        shutil.rmtree(run_dir)
    return dict(points), differences


def places_in(overrides: Sequence[str]) -> dict[str, range]:
    """The ranks of each role that the overrides place."""
    found = [re.fullmatch(r"placement\.(\w+)=(\d+)(?:-(\d+))?", text) for text in overrides]
    return {match[1]: range(int(match[2]), int(match[3] or match[2]) + 1) for match in found if match}


def faults(rng: random.Random, ranks: int, most: int, places: Mapping[str, range]) -> Iterator[str]:
    """The fault for each start of a run: KILLS_A_RUN kills, or `most`, and then none for ever."""
    for _ in range(min(KILLS_A_RUN, most)):
        point = rng.choice(list(VISITS))
        home = places.get(ROLES.get(point, ""), range(ranks))
        rank = home[0] if point in ON_FIRST_RANK else rng.choice(home)
        yield f"kill@{point}#{rng.randint(1, VISITS[point])},rank={rank}"
    while True:
        yield ""


def problems_in(folder: Path) -> list[str]:
    """Write a few problems to the folder. Returns the overrides that point to them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {f"data.{name}_path": folder / f"{name}.jsonl" for name in ("train", "eval", "sft")}
    arithmetic.write_task(*paths.values(), seed=1, task=arithmetic.Task(num_train=20, num_eval=8, num_sft=40))
    return [f"{key}={path}" for key, path in paths.items()]


def start(run_dir: Path, overrides: Sequence[str], ranks: int, fault: str = "", timeout_s: float = 240) -> list[int]:
    """Exit statuses of the ranks of `simplerl train`, negative for a signal; where one dies, the others are killed too.

    Forked from a server that has imported everything: a rank starts in a fraction of a second. What they print is added
    to output.txt in the run directory. Raises RuntimeError where a process that they started outlives them.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    port = _free_port()
    words = [*RUN, *overrides, f"trainer.run_dir={run_dir}"]
    processes = [
        context.Process(target=_rank, args=(words, rank, ranks, port, fault, run_dir / "output.txt"))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s
    while alive := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in alive], timeout=max(0.0, deadline - time.monotonic()))
        is_late = time.monotonic() >= deadline
        if is_late or any(process.exitcode not in (None, 0, os.EX_TEMPFAIL) for process in processes):
            for process in alive:
                process.kill()
    if left := _left_of([process.pid for process in processes]):
        raise RuntimeError(f"{run_dir}: these processes outlived their rank: {left}")
    return [process.exitcode for process in processes]  # type: ignore[misc]


def _left_of(sessions: Sequence[int | None], patience_s: float = 10) -> list[str]:
    """Command lines of the processes that are still in a session of an ended rank."""
    deadline = time.monotonic() + patience_s
    while (
        left := [line for pid, line in _command_lines() if _session(pid) in sessions]
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _command_lines() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode()


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _rank(words: list[str], rank: int, ranks: int, port: int, fault: str, output: Path) -> None:
    os.setsid()  # what this rank starts can be told by its session
    with open(output, "ab", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "SIMPLERL_FAULTS": fault}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from nemo_simplerl.cli.main import main as simplerl

    torch.set_num_threads(1)
    status = 70
    with suppress(SystemExit):
        status = simplerl(["train", *words])
    sys.stdout.flush()
    os._exit(status)


def different(one: Path, other: Path) -> list[str]:
    """Files of two finished runs that ought to be the same and are not."""
    names = {str(path.relative_to(run)) for run in (one, other) for path in _compared(run)}
    return sorted(name for name in names if _content(one / name) != _content(other / name))


def _compared(run_dir: Path) -> Iterator[Path]:
    last = max((run_dir / "checkpoints").glob("step_*"), key=lambda path: path.name)
    yield from last.rglob("*.distcp")
    for pattern in ("metrics.jsonl", "rollouts/*.jsonl", "eval/*.jsonl", "hf/*/*.safetensors"):
        yield from run_dir.glob(pattern)


def _content(path: Path) -> object:
    if not path.exists():
        return None
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps([{key: line[key] for key in line if not _may_differ(key, line)} for line in lines])


def _may_differ(key: str, line: dict) -> bool:
    """Timings, and with rollout.ahead=1 what judges the engine: a resumed run has no weights for that at first."""
    return key.startswith(("time/", "memory/")) or ("rollout/lag" in line and key in OF_THE_ENGINE)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    raise SystemExit(main())
