"""The quickstart by every recipe of conf/algo, at several seeds. Prints one JSON line a run, as it ends.

usage: python scripts/bench/algorithms.py [--recipes default,grpo] [--seeds 1,2,3] [--warm-starts FOLDER] [OVERRIDE ...]

The warm start of a seed does not depend on the recipe: it is made once by `simplerl sft`, and each run finds it as one
finds it that is started again. Accuracies are shares of the held-out problems before and after, greedy and sampled;
`step_seconds` is the median of a step without its evaluation, `seconds` the whole run with its warm start, `peak_mb`
the most memory that a process of it took. Run it with the Python of an environment that has the project.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quickstart import ROOT, ends_of, metrics_of

RECIPES = ("default", "grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "gspo", "vapo")
WARM_START = ("data", "base", "sft")  # folders of a run directory that its warm start leaves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=RECIPES, type=lambda text: text.split(","))
    parser.add_argument("--seeds", default=(1, 2, 3), type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--warm-starts", type=Path, help="folder to keep warm starts in for the next call")
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = args.warm_starts or Path(folder)
        for seed in args.seeds:
            warm_start = warm_start_of(seed, kept / f"seed_{seed}", overrides)
            for recipe in args.recipes:
                found = run(recipe, seed, warm_start, overrides)
                print(json.dumps({"bench": "algorithms", "recipe": recipe, "seed": seed, **found}), flush=True)


def warm_start_of(seed: int, folder: Path, overrides: list[str]) -> Path:
    """The folder with the warm start of `seed` and its `seconds.json`, made where it is missing."""
    if not (folder / "seconds.json").exists():
        seconds, _ = simplerl("sft", f"trainer.run_dir={folder}", f"trainer.seed={seed}", *overrides)
        (folder / "seconds.json").write_text(json.dumps(seconds))
    return folder


def run(recipe: str, seed: int, warm_start: Path, overrides: list[str]) -> dict:
    """What a run by `recipe` took and came to."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        for name in WARM_START:
            shutil.copytree(warm_start / name, run_dir / name)
        settings = [f"trainer.run_dir={run_dir}", f"trainer.seed={seed}", f"algo={recipe}"]
        seconds, peak_mb = simplerl("train", *settings, *overrides)
        lines = metrics_of(run_dir)
    steps = [line["time/total"] - line.get("time/eval", 0.0) for line in lines if line["step"]]
    return {
        **ends_of(lines),
        "step_seconds": round(statistics.median(steps), 2),
        "seconds": round(seconds + json.loads((warm_start / "seconds.json").read_text()), 1),
        "peak_mb": round(peak_mb),
    }


def simplerl(command: str, *settings: str) -> tuple[float, float]:
    """Seconds that the command took, and the memory in MB of its largest process. Raises where it failed."""
    environment = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))} | dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    began = time.monotonic()
    words = [sys.executable, "-m", "nemo_simplerl", command, "experiment=quickstart", *settings]
    process = subprocess.Popen(words, env=environment, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return time.monotonic() - began, used.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
