"""A PPO step of this project, step by step beside other sides doing the same work. Prints one JSON line.

usage: python scripts/bench/step.py [--model S|M] [--variant fixed|varied] [--prompts N] [--steps N]
                                    [--against trl,roofline,before] [--trl-python PYTHON] [--before CHECKOUT]
                                    [OVERRIDE ...]

The work is bench/sides/work.py's; `trl` is TRL's PPOTrainer (TRL 1.12.0, in PYTHON's environment), `roofline` the
needed matrix work of a step in bare PyTorch, `before` this project as it stands in CHECKOUT, run by CHECKOUT/.venv.
Each side is a process of its own that lives through the run; they take turns, a step each, after one warm-up step each
that is not counted. Overrides are for this project's configuration.

`against_SIDE` holds the side's seconds over ours, for the whole step, for training (passes and updates) and for
generation: the median of the rounds, the least and the most. For the roofline it is the share of the limit that is
reached. A step is called contended where other processes, or the machine's host, took more than a tenth of the
processors while it ran; `uncontended` leaves out the rounds with such a step. `versions` are those each side ran with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SIDES = "scripts/bench/sides"
SCRIPTS = {"ours": "ours.py", "before": "ours.py", "trl": "trl_ppo.py", "roofline": "roofline.py"}
PHASES = {"step": ("step",), "training": ("passes", "updates"), "generation": ("generation",)}
CONTENDED = 0.1
DEFAULT_PROMPTS = {"S": 32, "M": 8}

Step = dict[str, float]


class Side:
    """A process that runs one side and takes a step on request."""

    def __init__(self, name: str, python: str, arguments: list[str], checkout: Path = CHECKOUT):
        self.name = name
        self.process = subprocess.Popen(
            [python, str(checkout / SIDES / SCRIPTS[name]), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(name, checkout),
            cwd=checkout,  # reward workers import from where they are started, and see no PYTHONPATH
        )
        self.versions = self._answer()

    def step(self) -> Step:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}; its messages are above.")
        return json.loads(line)


def environment(name: str, checkout: Path) -> dict[str, str]:
    """The environment of a side's process: all threads, and this project from `checkout` over an installed one."""
    changed = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    if SCRIPTS[name] == "ours.py":
        changed["PYTHONPATH"] = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    return os.environ | changed


def main() -> None:
    args, overrides = arguments()
    given = [args.model, args.variant, str(args.prompts or DEFAULT_PROMPTS[args.model])]
    names = ["ours", *(name for name in args.against.split(",") if name)]
    pythons = {"trl": args.trl_python, "before": args.before and str(args.before / ".venv/bin/python")}
    checkouts = {"before": args.before}
    sides = [
        Side(
            name,
            pythons.get(name, sys.executable),
            given + (overrides if SCRIPTS[name] == "ours.py" else []),
            checkouts.get(name, CHECKOUT),
        )
        for name in names
    ]
    for side in sides:
        side.step()
    steps: dict[str, list[Step]] = {name: [] for name in names}
    for number in range(args.steps):
        for side in sides:
            steps[side.name].append(side.step())
            print(f"step {number + 1} {side.name}: {steps[side.name][-1]}", file=sys.stderr)
    for side in sides:
        side.close()
    versions = {side.name: side.versions for side in sides}
    print(json.dumps(report(args, given, steps) | {"versions": versions}))


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(DEFAULT_PROMPTS), default="S")
    parser.add_argument("--variant", choices=("fixed", "varied"), default="varied")
    parser.add_argument("--prompts", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--against", default="")
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    args, overrides = parser.parse_known_args()
    if unknown := sorted(set(filter(None, args.against.split(","))) - set(SCRIPTS)):
        parser.error(f"--against knows {', '.join(name for name in SCRIPTS if name != 'ours')}, not {unknown}")
    if "before" in args.against.split(",") and args.before is None:
        parser.error("--against before needs --before CHECKOUT")
    return args, overrides


def report(args: argparse.Namespace, given: list[str], steps: dict[str, list[Step]]) -> dict:
    return {
        "bench": "step",
        "model": args.model,
        "variant": args.variant,
        "prompts": int(given[2]),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        **{name: medians(taken) for name, taken in steps.items()},
        **{f"against_{name}": against(taken, steps["ours"]) for name, taken in steps.items() if name != "ours"},
        "steps": {
            name: [{key: round(value, 3) for key, value in step.items()} for step in taken]
            for name, taken in steps.items()
        },
    }


def medians(taken: list[Step]) -> Step:
    return {key: round(statistics.median(step[key] for step in taken), 3) for key in taken[0]}


def against(theirs: list[Step], ours: list[Step]) -> dict[str, dict | None]:
    """The other side's seconds over ours in each round of turns, and without the rounds that are contended."""
    rounds = list(zip(theirs, ours, strict=True))
    quiet = [pair for pair in rounds if max(step["others"] for step in pair) <= CONTENDED]
    return {
        **{name: spread(rounds, phases) for name, phases in PHASES.items()},
        "uncontended": spread(quiet, PHASES["step"]) if quiet else None,
    }


def spread(rounds: list[tuple[Step, Step]], phases: tuple[str, ...]) -> dict[str, float]:
    ratios = [sum(theirs[phase] for phase in phases) / sum(ours[phase] for phase in phases) for theirs, ours in rounds]
    return {
        "median": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
        "rounds": len(ratios),
    }


if __name__ == "__main__":
    main()
