"""The first hour with a GPU, on a machine without one: every step runs in a toy size, and none holds up another."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts/bench"))

import first_hour  # noqa: E402

STEPS = ["install", "machine", "gpu_tests", "bench", "quickstart", "transformer_engine"]
# What a machine with torch and transformers has, among what setup.py asks for.
THERE = {"torch", "transformers", "tokenizers", "safetensors", "numpy"}


@pytest.mark.long
def test_every_step_runs_in_a_toy_size_on_a_cpu(tmp_path):
    command = [ROOT / "scripts/gpu_first_hour.sh", "--dry", "--out", tmp_path]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    )
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert done.returncode == 0, found
    statuses = {name: found[name]["status"] for name in STEPS}
    assert statuses == dict.fromkeys(STEPS, "ok") | {"install": "skipped", "transformer_engine": "skipped"}
    assert found == json.loads((tmp_path / "first_hour.json").read_text()) | {"seconds": found["seconds"]}
    assert found["machine"]["gpu"] is None and found["machine"]["versions"]["torch"]
    assert found["gpu_tests"]["skipped"] >= 10 and not found["gpu_tests"]["not_passed"]
    toy = found["bench"]
    for name in ("update", "logprobs"):
        assert toy[name]["mfu"] == pytest.approx(toy[name]["tflops"] / 2, rel=1e-3)
    assert toy["refit"]["bytes"] == 2 * toy["build"]["parameters"] and toy["refit"]["gb_per_s"] > 0
    assert all(toy[f"rollout_{size}"]["tokens_per_s"] > 0 for size in (2, 4, 6))
    assert found["quickstart"]["same_responses"] == 1.0
    assert all(one == other for one, other in found["quickstart"]["step_1"].values())


def test_without_a_gpu_nothing_is_begun_and_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first_hour, "has_gpu", lambda: False)
    monkeypatch.setattr(sys, "argv", ["first_hour.py", "--out", str(tmp_path / "out")])
    assert first_hour.main() == 69
    (line,) = capsys.readouterr().err.splitlines()
    assert "no GPU" in line and "--dry" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", ["", "--bogus", "--list --bogus", "wheels --bogus", "wheels 3.12 more", "wheels x"]
)
def test_the_wheels_are_fetched_for_a_folder_and_a_version_alone(arguments, tmp_path):
    command = [ROOT / "scripts/gpu_wheels.sh", *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHON": "false"})
    assert done.returncode == (1 if arguments == "wheels x" else 2)
    assert "gpu_wheels.sh FOLDER" in done.stderr or "no Python version" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_step_that_fails_hangs_or_comes_too_late_is_told_and_the_next_one_runs(tmp_path, capsys):
    hour = first_hour.Hour(tmp_path, minutes=5, dry=True)

    def program(code: str, seconds: float):
        return lambda limit_s: hour.run("program", [sys.executable, "-c", code], min(limit_s, seconds))[0]

    hour.step("hangs", 60, program("import time; print('begun', flush=True); time.sleep(60)", 1))
    hour.step("fails", 60, program("raise SystemExit('no such thing')", 30))
    hour.step("breaks", 60, lambda limit_s: {}["key"])
    hour.step("works", 60, program("print('{}')", 30))
    hour.step("late", first_hour.LEAST_S - 1, program("", 30))
    statuses = {name: found["status"] for name, found in hour.figures.items()}
    assert statuses == {
        "hangs": "timed_out",
        "fails": "failed",
        "breaks": "failed",
        "works": "ok",
        "late": "skipped",
    }
    assert "no such thing" in hour.figures["fails"]["tail"] and "KeyError" in hour.figures["breaks"]["why"]
    kept = json.loads((tmp_path / "first_hour.json").read_text())
    assert kept.keys() >= statuses.keys()
    assert len(capsys.readouterr().err.splitlines()) == len(statuses)


def test_what_a_run_of_tests_told_before_it_was_cut_off_is_counted():
    told = """
tests/a/test_one.py::test_runs[fp32-false] PASSED                          [ 10%]
tests/a/test_one.py::test_runs[bf16-true] SKIPPED (no CUDA device)         [ 20%]
tests/a/test_one.py::test_breaks FAILED                                    [ 30%]
tests/a/test_one.py::test_is_still_running """
    found = first_hour.outcomes(told)
    assert found == {"passed": 1, "failed": 1, "skipped": 1, "not_passed": ["test_one.py::test_breaks"]}
    assert first_hour.outcomes("ERROR tests/b/test_two.py - ImportError")["not_passed"] == ["tests/b/test_two.py"]


def test_the_wheels_hold_what_the_project_asks_for_and_not_what_every_such_machine_has():
    listed = subprocess.run([ROOT / "scripts/gpu_wheels.sh", "--list"], capture_output=True, text=True, check=True)
    names = {line.split("==")[0] for line in listed.stdout.split()}
    block = re.search(r"install_requires=\[(.*?)\n    \],", (ROOT / "setup.py").read_text(), re.S)
    asked = set(re.findall(r'^ +"([\w-]+)', block[1], re.M))
    assert len(asked) > 10 and asked - names == THERE
    assert "pytest" in names and not {"ray", "wandb", "pyarrow"} & names


def test_a_wheel_is_put_in_place_where_its_package_is_missing(tmp_path):
    assert first_hour.is_installed("pytest-1.0-py3-none-any.whl")
    assert first_hour.is_installed("antlr4_python3_runtime-4.9.3-py3-none-any.whl")
    assert not first_hour.is_installed("no_such_package-1.0-py3-none-any.whl")
