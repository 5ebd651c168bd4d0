"""A step with roles on ranks of their own beside one on shared ranks: what works at the same time. One line of JSON.

usage: scripts/bench/placement.py [--scale 3] [--steps 5] [--draw]

Four ranks train a tiny model: all roles on all four, then the actor on two and critic and engine on one each, without
and with rollout.ahead=1. Phases are made to last by sleeps of SECONDS times `--scale`, which have the proportions of a
step of the recipe at 7B (docs/performance.md). `--draw`: a time line of one step of each too, a line a rank, a column
for a twentieth of the longest chain.

step_seconds   median of the steps but the first and the last
chain          seconds of the longest chain of phases that wait for each other; of shared ranks, of all phases
over_chain     step_seconds over that
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kills import problems_in, start

from nemo_simplerl.trainer.logging.trace import FOLDER, VARIABLE

SECONDS = {
    "rollout": 1.7,
    "old_logprobs": 0.3,
    "reference_logprobs": 0.3,
    "values": 0.3,
    "critic_update": 1.2,
    "actor_update": 1.3,
}
RANKS = {"rollout": (3,), "values": (2,), "critic_update": (2,)}  # where roles are apart; the actor's are 0 and 1
LETTERS = dict(zip(SECONDS, "RLKVCA", strict=True))
APART = ["placement.actor=0-1", "placement.critic=2", "placement.engine=3"]
AHEAD = ["rollout.ahead=1", "rollout.consistency.policy=correct"]
_TRAINING = max(SECONDS["old_logprobs"] + SECONDS["reference_logprobs"], SECONDS["values"])
_TRAINING += max(SECONDS["actor_update"], SECONDS["critic_update"])
PLACEMENTS = {  # and the longest chain of phases of a step
    "shared": ([], sum(SECONDS.values())),
    "apart": (APART, SECONDS["rollout"] + _TRAINING),
    "ahead": ([*APART, *AHEAD], max(SECONDS["rollout"], _TRAINING)),
}
RUN = ["actor.tensor_model_parallel_size=2", "critic.tensor_model_parallel_size=1", "algo.kl_coef=0.01"]
RUN += ["trainer.save_every=0", "trainer.eval_every=0"]


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    os.environ[VARIABLE] = "1"
    line: dict[str, object] = {"bench": "placement", "scale": options.scale}
    with tempfile.TemporaryDirectory() as folder:
        problems = problems_in(Path(folder) / "data")
        for name, (placement, chain) in PLACEMENTS.items():
            run_dir, words = Path(folder) / name, [*RUN, *problems, *placement, f"trainer.max_steps={options.steps}"]
            statuses = start(run_dir, words, 4, sleeps(options, name), timeout_s=900)
            if any(statuses):
                sys.exit(f"the ranks ended with {statuses}:\n{(run_dir / 'output.txt').read_text()[-3000:]}")
            seconds, least = statistics.median(step_seconds(run_dir)[2:-1]), chain * options.scale
            line[name] = {
                "step_seconds": round(seconds, 2),
                "chain": round(least, 2),
                "over_chain": round(seconds / least, 3),
            }
            if options.draw:
                print(f"{name}\n{drawn(events_of(run_dir), least)}", file=sys.stderr)
    print(json.dumps(line))


def sleeps(options: argparse.Namespace, name: str) -> str:
    """The faults that make phases last in a placement, for trainer.guard.faults."""
    return ";".join(
        f"delay@{phase}#{visit},seconds={seconds * options.scale}" + ("" if rank is None else f",rank={rank}")
        for phase, seconds in SECONDS.items()
        for visit in map(partial(visit_of, phase, name), range(1, options.steps + 1))
        for rank in ((None,) if name == "shared" else RANKS.get(phase, (0, 1)))
    )


def visit_of(phase: str, name: str, step: int) -> int:
    """Which time a rank begins this phase in this step. One step ahead the gate's probe, a sixteenth of the samples, is
    passed through the weights that sampled it too, after the phase itself and without a sleep."""
    return 2 * step - 2 if name == "ahead" and phase == "old_logprobs" and step > 1 else step


def step_seconds(run_dir: Path) -> list[float]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["time/total"] for line in lines]


def events_of(run_dir: Path) -> list[dict]:
    files = sorted((run_dir / FOLDER).glob("rank_*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def drawn(events: Sequence[dict], chain: float, *, step: int = 3, columns: int = 20) -> str:
    """A line a rank: what it did from the beginning of a step's rollout to that of the next step's rollout, as the last
    rank, which has an engine, begins them. A point is a wait."""
    last_rank = max(event["pid"] for event in events)
    rollouts = sorted(event["ts"] for event in events if (event["name"], event["pid"]) == ("rollout", last_rank))
    begin, end = rollouts[step - 1], rollouts[step]
    width = chain * 1e6 / columns
    lines = []
    for rank in sorted({event["pid"] for event in events}):
        line = ["."] * round((end - begin) / width)
        for event in events:
            if event["pid"] == rank and event["name"] in LETTERS:
                first, last = ((event["ts"] + more - begin) / width for more in (0, event["dur"]))
                for column in range(max(round(first), 0), min(round(last), len(line))):
                    line[column] = LETTERS[event["name"]]
        lines.append(f"rank {rank}  {''.join(line)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
