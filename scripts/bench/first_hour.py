"""What a machine with one GPU can show in a few minutes, in order of worth. Prints one JSON line.

usage: python scripts/bench/first_hour.py [--wheels FOLDER] [--out FOLDER] [--minutes N] [--dry]

scripts/gpu_first_hour.sh is the command for people; this file needs the standard library alone, until it has put in
place what the machine lacks. Each step is a process of its own with a limit of seconds: one that fails, hangs or is cut
off costs the steps behind it nothing. The figures of every step go to stderr and to OUT/first_hour.json as they come,
so that what was measured survives a machine that is taken away.

Steps, by the name of their figures:
    install             wheels of what the machine lacks, from --wheels; what is there already is left as it is
    machine             versions, the GPU, and whether the trainer imports
    gpu_tests           the tests marked `gpu`
    bench               gpu.py at the shape of Qwen2.5-0.5B on the layers of torch alone: an update and a
                        log-probability pass with their MFU, refit in GB/s, decoding in tokens/s at three batch sizes
    quickstart          three PPO steps of the quickstart on the GPU and on the CPU, and how far they agree
    transformer_engine  the passes of `bench` on Transformer Engine's layers, where it is installed

`status` is ok, failed, timed_out or skipped; `why` says why. --dry hides the GPU and takes toy sizes: every step runs,
and a typing error costs nobody an hour. Exit status: 0, or 1 where a step is neither ok nor skipped; 69 where torch
sees no GPU, and nothing is begun.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts/bench/gpu.py"
UNAVAILABLE = 69  # as scripts/env.sh ends with where something cannot be had
NO_GPU = "torch sees no GPU here, so there is nothing to measure; --dry shows on the CPU that every step runs"
LEAST_S = 15  # a step with less time left is not begun
TAIL = 1500  # characters of a failed step's output that are kept
Figures = dict[str, object]

# Three steps, one evaluation's worth of problems left out, and no warm start: what they show is agreement.
QUICKSTART = [
    "experiment=quickstart",
    "sft.output=null",
    "trainer.max_steps=3",
    "trainer.save_every=0",
    "trainer.export=[]",
    "trainer.tensorboard=false",
    "data.eval_limit=8",
]
TOY_QUICKSTART = [
    "model.create.hidden_size=32",
    "model.create.num_layers=2",
    "model.create.ffn_hidden_size=48",
    "actor.global_batch_size=8",
    "critic.global_batch_size=8",
    "data.rollout_batch_size=4",
    "rollout.max_prompt_tokens=100",
    "rollout.max_response_tokens=12",
]
COMPARED = ("reward/mean", "rollout/length_mean", "actor/grad_norm", "critic/grad_norm", "critic/loss", "actor/kl_ref")
VERSIONS = """
import importlib.metadata as metadata, json, os, sys, torch
import nemo_simplerl.trainer.start
names = ("torch", "transformers", "megatron-core", "transformer-engine", "triton", "numpy")
have = {name: metadata.version(name) for name in names if any(metadata.distributions(name=name))}
has_gpu = torch.cuda.is_available()
gpu = {"gpu": torch.cuda.get_device_name(), "gpu_bytes": torch.cuda.mem_get_info()[1]} if has_gpu else {"gpu": None}
print(json.dumps({"python": sys.version.split()[0], "cores": os.cpu_count(), "versions": have} | gpu))
"""


class Hour:
    """Runs steps one after the other until `minutes` are over, and keeps their figures in `out`."""

    def __init__(self, out: Path, minutes: float, dry: bool):
        self.out, self.dry, self._began = out, dry, time.monotonic()
        self._ends = self._began + 60 * minutes
        self.site = out / "site"  # packages that the machine lacks
        self.figures: dict[str, Figures] = {}

    def step(self, name: str, limit_s: float, work: Callable[[float], Figures]) -> None:
        """Keep the figures that `work` finds within its seconds, or why it finds none."""
        began = time.monotonic()
        limit_s = min(limit_s, self._ends - began)
        if limit_s < LEAST_S:
            found: Figures = {"status": "skipped", "why": "the time was up"}
        else:
            try:
                found = work(limit_s)
            except Exception as error:  # a step's own fault must not end the others
                found = {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        self.figures[name] = found | {"seconds": round(time.monotonic() - began, 1)}
        print(json.dumps({name: self.figures[name]}), file=sys.stderr, flush=True)
        (self.out / "first_hour.json").write_text(json.dumps(self.report()) + "\n")

    def report(self) -> dict[str, object]:
        about = {"bench": "first_hour", "dry": self.dry, "seconds": round(time.monotonic() - self._began, 1)}
        return about | self.figures

    def run(self, name: str, command: list[str], limit_s: float, **environment: str) -> tuple[Figures, str, str]:
        """How a command ended, and its output, which is kept in OUT too. A command out of time is killed with all that
        it started."""
        paths = [str(self.site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment
        if self.dry:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        files = [self.out / f"{name}.{kind}" for kind in ("stdout", "stderr")]
        with files[0].open("wb") as stdout, files[1].open("wb") as stderr:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, cwd=self.out, env=environment, start_new_session=True
            )
            try:
                process.wait(limit_s)
                ended: Figures = {"status": "ok" if process.returncode == 0 else "failed"}
            except subprocess.TimeoutExpired:
                ended = {"status": "timed_out", "why": f"it was stopped after {limit_s:.0f} s"}
            finally:
                _kill_group(process)
        told, problems = (file.read_text(errors="replace") for file in files)
        if ended["status"] == "failed":
            ended |= {"why": f"exit status {process.returncode}", "tail": (told + problems)[-TAIL:]}
        return ended, told, problems


def _kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if not args.dry and not has_gpu():
        print(NO_GPU, file=sys.stderr)
        return UNAVAILABLE
    out = (args.out or Path(tempfile.mkdtemp(prefix="first_hour_"))).absolute()
    out.mkdir(parents=True, exist_ok=True)
    print(f"figures, and the output of every step: {out}", file=sys.stderr, flush=True)
    hour = Hour(out, args.minutes, args.dry)
    hour.step("install", 60, lambda limit_s: install(hour, args.wheels, limit_s))
    hour.step("machine", 60, lambda limit_s: machine(hour, limit_s))
    hour.step("gpu_tests", 170, lambda limit_s: gpu_tests(hour, limit_s))
    hour.step("bench", 130, lambda limit_s: bench(hour, "bench", ["--local-layers"], limit_s))
    hour.step("quickstart", 120, lambda limit_s: quickstart(hour, limit_s))
    hour.step("transformer_engine", 80, lambda limit_s: transformer_engine(hour, limit_s))
    print(json.dumps(hour.report()))
    return int(any(found["status"] not in ("ok", "skipped") for found in hour.figures.values()))


def has_gpu() -> bool:
    """Whether torch sees a GPU: asked in a process of its own, which takes torch's memory with it."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def install(hour: Hour, wheels: Path | None, limit_s: float) -> Figures:
    """Unpack the wheels of packages that this Python does not have into a folder of their own."""
    if wheels is None:
        return {"status": "skipped", "why": "no --wheels"}
    lacking = [wheel for wheel in sorted(wheels.absolute().glob("*.whl")) if not is_installed(wheel.name)]
    if not lacking:
        return {"status": "ok", "installed": []}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    ended, _, _ = hour.run("install", [*pip, "--target", str(hour.site), *map(str, lacking)], limit_s)
    return ended | {"installed": [wheel.name.split("-")[0] for wheel in lacking]}


def is_installed(wheel: str) -> bool:
    """Whether a package of the wheel's name is there, in any version: a machine's own packages go together."""
    return any(importlib.metadata.distributions(name=re.sub(r"[-_.]+", "-", wheel.split("-")[0])))


def machine(hour: Hour, limit_s: float) -> Figures:
    ended, told, _ = hour.run("machine", [sys.executable, "-c", VERSIONS], limit_s)
    return ended | last_json(told)


def gpu_tests(hour: Hour, limit_s: float) -> Figures:
    """The tests marked gpu, from the files that have such: other files may need packages that are not there."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text()]
    pytest = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    pytest += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "--basetemp", str(hour.out / "tests")]
    ended, told, _ = hour.run("gpu_tests", [*pytest, *files], limit_s)
    return ended | outcomes(told)


def outcomes(told: str) -> Figures:
    """Counts of pytest's outcomes and the names of what did not pass, from its verbose output, cut off or not."""
    found = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", told, re.M)
    counts: Figures = {kind.lower(): sum(one == kind for _, one in found) for kind in ("PASSED", "FAILED", "SKIPPED")}
    bad = [name.split("/")[-1] for name, kind in found if kind in ("FAILED", "ERROR")]
    return counts | {"not_passed": bad or re.findall(r"^ERROR (\S+)", told, re.M)}


def bench(hour: Hour, name: str, more: list[str], limit_s: float) -> Figures:
    """The figures of gpu.py; of one that is cut off, those of the parts that it has finished."""
    size = (
        ["--smoke", "--repeats", "1", "--peak", "2"]
        if hour.dry
        else ["--models", "0.5B", "--limit-s", f"{0.8 * limit_s:.0f}"]
    )
    ended, told, problems = hour.run(name, [sys.executable, str(BENCH), *size, *more], limit_s)
    whole = last_json(told)
    if whole:
        (model,) = whole.pop("models").values()
        return ended | {"peak": whole["peak"], "transformer_engine": whole["transformer_engine"]} | model
    return ended | {part.pop("part"): part for part in json_lines(problems) if "part" in part}


def quickstart(hour: Hour, limit_s: float) -> Figures:
    """The same three steps on the GPU and on the CPU: how alike their first rollouts are, and their metrics."""
    places = {"gpu": {}, "cpu": {"CUDA_VISIBLE_DEVICES": ""}}
    found: Figures = {}
    began = time.monotonic()
    for place, environment in places.items():
        run_dir = hour.out / f"quickstart_{place}"
        shutil.rmtree(run_dir, ignore_errors=True)
        overrides = [*QUICKSTART, *(TOY_QUICKSTART if hour.dry else []), f"trainer.run_dir={run_dir}"]
        command = [sys.executable, "-m", "nemo_simplerl", "train", *overrides]
        left = limit_s - (time.monotonic() - began)
        started = time.monotonic()
        ended, _, _ = hour.run(f"quickstart_{place}", command, max(left, 1), **environment)
        found[f"{place}_seconds"] = round(time.monotonic() - started, 1)
        if ended["status"] != "ok":
            return found | ended | {"where": place}
    return found | {"status": "ok"} | agreement(*(hour.out / f"quickstart_{place}" for place in places))


def agreement(one: Path, other: Path) -> Figures:
    """Of the first step: the share of responses that are the same, and metrics of both runs; and each run's rewards."""
    rows, metrics = [], []
    for run_dir in (one, other):
        rows.append([row["response"] for row in json_lines((run_dir / "rollouts/step_000001.jsonl").read_text())])
        metrics.append({row["step"]: row for row in json_lines((run_dir / "metrics.jsonl").read_text())})
    same = sum(mine == theirs for mine, theirs in zip(*rows, strict=True))
    first = {key: [each[1][key] for each in metrics] for key in COMPARED if key in metrics[0][1]}
    return {
        "same_responses": round(same / len(rows[0]), 4),
        "step_1": {key: [float(f"{value:.6g}") for value in values] for key, values in first.items()},
        "seconds_of_a_step": [round(each[3]["time/total"], 2) for each in metrics],
    }


def transformer_engine(hour: Hour, limit_s: float) -> Figures:
    if importlib.util.find_spec("transformer_engine") is None:
        return {"status": "skipped", "why": "transformer_engine is not installed"}
    return bench(hour, "transformer_engine", ["--parts", "update,logprobs"], limit_s)


def last_json(told: str) -> dict:
    """The last JSON object among the lines; empty where there is none."""
    return next(iter(reversed(list(json_lines(told)))), {})


def json_lines(text: str) -> Iterable[dict]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:  # a line that was cut off
                continue


if __name__ == "__main__":
    sys.exit(main())
