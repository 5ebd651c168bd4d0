"""The quickstart at several seeds, whole commands. Prints one JSON line.

usage: python scripts/bench/quickstart.py [--seeds 1,2,3] [--nproc N] [OVERRIDE ...]

Each run is a process of its own in a temporary folder. `seconds` is from the command to its end, warm start and
evaluations included; accuracies are shares of the held-out problems before and after PPO.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("eval/accuracy", "eval/sampled_accuracy", "eval/format_rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--nproc", default=1, type=int)
    args, overrides = parser.parse_known_args()
    runs = [run(seed, args.nproc, overrides) for seed in args.seeds]
    print(json.dumps({"bench": "quickstart", "nproc": args.nproc, "overrides": overrides, "runs": runs}))


def run(seed: int, nproc: int, overrides: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        began = time.monotonic()
        subprocess.run(
            [ROOT / "scripts/quickstart.sh", f"trainer.run_dir={run_dir}", f"trainer.seed={seed}", *overrides],
            env=os.environ | {"NPROC": str(nproc)},
            stdout=sys.stderr,
            check=True,
        )
        seconds = round(time.monotonic() - began, 1)
        return {"seed": seed, "seconds": seconds, **ends_of(metrics_of(run_dir))}


def metrics_of(run_dir: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, one a step."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def ends_of(lines: list[dict]) -> dict[str, list[float]]:
    """The first and the last evaluation, in per cent, by figure."""
    measured = [line for line in lines if FIGURES[0] in line]
    return {name: [round(100 * line[name], 1) for line in (measured[0], measured[-1])] for name in FIGURES}


if __name__ == "__main__":
    main()
