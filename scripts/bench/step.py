"""A PPO step of this project, step by step beside other sides doing the same work. Prints one JSON line.

usage: python scripts/bench/step.py [--model S|M] [--variant fixed|varied] [--prompts N] [--steps N]
                                    [--against trl,roofline,before] [--trl-python PYTHON] [--before CHECKOUT]
                                    [OVERRIDE ...]

The work is bench/sides/work.py's; `trl` is TRL's PPOTrainer (TRL 1.12.0, in PYTHON's environment), `roofline` the
needed matrix work of training alone in bare PyTorch, `before` this project as it stands in CHECKOUT, run by
CHECKOUT/.venv. Each side is a
process of its own that lives through the run; they take turns, a step each, after one warm-up step each that is not
counted. Overrides are for this project's configuration.

A step is called contended where other processes, or the machine's host, took more than a tenth of the processors
while it ran. All steps are in the output. `ratio` is the median over all of a side's steps, over ours;
`ratio_uncontended` the same without contended steps on both sides. For the roofline it is its training (passes and
updates) over ours: the share of the limit that is reached.
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
TRAINING = ("passes", "updates")
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
        self._answer()

    def step(self) -> Step:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Step:
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
    print(json.dumps(report(args, given, steps)))


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
        **{f"against_{name}": against(name, taken, steps["ours"]) for name, taken in steps.items() if name != "ours"},
        "steps": {
            name: [{key: round(value, 3) for key, value in step.items()} for step in taken]
            for name, taken in steps.items()
        },
    }


def medians(taken: list[Step]) -> Step:
    return {key: round(statistics.median(step[key] for step in taken), 3) for key in taken[0]}


def against(name: str, theirs: list[Step], ours: list[Step]) -> dict[str, float | int | None]:
    """The other side's seconds over ours, and the number of contended steps of each side."""
    quiet = [[step for step in taken if step["others"] <= CONTENDED] for taken in (theirs, ours)]
    return {
        "ratio": ratio(name, theirs, ours),
        "ratio_uncontended": ratio(name, *quiet) if all(quiet) else None,
        "left_out": [len(theirs) - len(quiet[0]), len(ours) - len(quiet[1])],
    }


def ratio(name: str, theirs: list[Step], ours: list[Step]) -> float:
    phases = TRAINING if name == "roofline" else ("step",)
    seconds = [statistics.median(sum(step[phase] for phase in phases) for step in taken) for taken in (theirs, ours)]
    return round(seconds[0] / seconds[1], 3)


if __name__ == "__main__":
    main()
