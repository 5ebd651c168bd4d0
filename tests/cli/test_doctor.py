"""What the doctor prints and when it calls a setup broken. The packages are those of the double, or hidden."""

import json
import resource
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fakes.double import FAKES
from nemo_simplerl.cli.main import main
from nemo_simplerl.doctor import machine
from nemo_simplerl.doctor.examine import lacking
from nemo_simplerl.doctor.packages import NEEDED, OPTIONAL, other_megatron, outside_range

VERSIONS = dict.fromkeys((*NEEDED, *OPTIONAL), "1.0")


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Puts a copy of the double among the installed packages; returns its source folder."""

    def put():
        for name in ("tensorrt_llm", "tensorrt_llm-1.2.1.dist-info"):
            shutil.copytree(FAKES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path / "tensorrt_llm"

    return put


@pytest.fixture
def hide(monkeypatch):
    """Hides distributions from importlib.metadata."""

    def away(*names):
        seen = metadata.distribution

        def distribution(name):
            if name in names:
                raise metadata.PackageNotFoundError(name)
            return seen(name)

        monkeypatch.setattr(metadata, "distribution", distribution)

    return away


def test_without_tensorrt_llm_the_setup_is_whole_and_says_what_works(hide, capsys):
    hide("tensorrt-llm")
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "tensorrt-llm is not installed: rollout.engine=hf works" in told
    assert "problem" not in told
    rows = {line[:20].strip(): line[20:] for line in told.splitlines()}
    assert rows["python"] == sys.version.split()[0]
    assert rows["torch"] == metadata.version("torch")
    assert rows["tensorrt-llm"] == f"absent: {OPTIONAL['tensorrt-llm']}"
    assert rows["disk"].endswith(str(Path.cwd()))
    assert {*NEEDED, *OPTIONAL, "driver", "CUDA", "GPU", "shm", "limits", "loopback", "host name"} <= set(rows)


def test_a_tensorrt_llm_that_keeps_the_contract_is_fine(install, capsys):
    source = install()
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"tensorrt-llm in {source}:" in told and "0 differences" in told
    assert "tensorrt-llm        1.2.1" in told


def test_a_call_that_was_renamed_is_a_problem_and_names_the_file(install, capsys):
    file = install() / "_torch" / "async_llm.py"
    file.write_text(file.read_text().replace("async def resume", "async def wake_up"))
    assert main(["doctor"]) == 1
    assert "problem: tensorrt-llm _torch/async_llm.py: there is no AsyncLLM.resume" in capsys.readouterr().out


def test_tensorrt_llm_without_ray_is_a_problem(install, hide, capsys):
    install()
    hide("ray")
    assert main(["doctor"]) == 1
    assert "problem: tensorrt-llm is installed and ray," in capsys.readouterr().out


def test_a_missing_requirement_is_a_problem(hide, capsys):
    hide("tensorrt-llm", "megatron-core")
    assert main(["doctor"]) == 1
    assert "problem: megatron-core is required and not installed" in capsys.readouterr().out


def test_a_torch_that_does_not_load_is_a_problem(hide, capsys, monkeypatch):
    hide("tensorrt-llm")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 1
    assert "problem: torch cannot be imported" in capsys.readouterr().out


def test_as_json_the_same_rows_and_problems_are_one_object(hide, capsys):
    hide("tensorrt-llm", "transformers")
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False and told["rows"]["torch"] == metadata.version("torch")
    assert "transformers is required and not installed" in told["problems"]


def test_what_is_required_and_missing_is_a_problem_that_says_what_its_lack_costs(hide, capsys):
    hide("tensorrt-llm", "ray", "nemo-toolkit")
    assert main(["doctor"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--require", "trtllm", "nemo"]) == 1
    told = capsys.readouterr().out
    for name, package in (("trtllm", "tensorrt-llm"), ("trtllm", "ray"), ("nemo", "nemo-toolkit")):
        assert f"{name} is required here, and {package} is not installed: {OPTIONAL[package]}" in told


def test_a_requirement_that_there_is_none_of_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--require", "cuda"])
    assert left.value.code == 2 and "trtllm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("required", "versions", "num_gpus", "is_real_apex", "missing"),
    [
        (("gpu",), {}, 1, False, []),
        (("gpu",), {}, 0, False, ["torch can use none"]),
        (("te",), {}, 0, False, []),
        (("te",), {"transformer-engine": None}, 0, False, ["transformer-engine is not installed"]),
        (("apex",), {}, 0, True, []),
        (("apex",), {}, 0, False, ["another project of that name"]),
        (("apex",), {"apex": None}, 0, False, ["apex is not installed"]),
        (("nemo", "trtllm"), {"ray": None}, 0, False, ["ray is not installed"]),
    ],
)
def test_each_requirement_is_met_by_its_own_package_alone(required, versions, num_gpus, is_real_apex, missing):
    problems = lacking(required, VERSIONS | versions, num_gpus, is_real_apex)
    assert len(problems) == len(missing)
    assert all(part in problem for part, problem in zip(missing, problems, strict=True))


def test_a_version_outside_what_the_project_takes_is_a_problem():
    lines = ["transformers<5,>=4.57", "numpy>=1.26", 'ray>=2.40; extra == "trtllm"', "torch>=2.6", "absent>=1"]
    installed = {"transformers": "5.1.0", "numpy": "1.26.4", "ray": "1.0", "torch": "2.11.0a0+nv26.2", "absent": None}
    assert list(outside_range(lines, installed)) == [
        "transformers 5.1.0 is installed, and nemo_simplerl needs <5,>=4.57"
    ]


def test_a_megatron_that_hides_the_installed_one_is_a_problem():
    assert list(other_megatron(metadata.version("megatron-core"))) == []
    (problem,) = other_megatron("0.99.0")
    assert f"megatron-core 0.99.0 is installed, but Python imports {metadata.version('megatron-core')} from" in problem


@pytest.mark.parametrize(
    ("limits", "num_gpus", "parts"),
    [
        ({"nofile": 1024, "memlock": 65536}, 0, ["nofile is 1024"]),
        ({"nofile": 4096, "memlock": 65536}, 8, ["memlock is 65536 bytes"]),
        ({"nofile": resource.RLIM_INFINITY, "memlock": resource.RLIM_INFINITY}, 8, []),
    ],
)
def test_limits_are_noted_where_they_hurt(limits, num_gpus, parts):
    notes = machine.limit_notes(limits, num_gpus)
    assert len(notes) == len(parts) and all(part in note for part, note in zip(parts, notes, strict=True))


def test_the_small_shared_memory_of_a_container_is_noted_for_several_gpus():
    assert machine.shm_notes(64 * 2**20, 1) == [] and machine.shm_notes(2**30, 8) == []
    (note,) = machine.shm_notes(64 * 2**20, 8)
    assert "64 MiB" in note and "--ipc=host" in note


def test_a_master_address_without_an_address_is_a_problem(hide, capsys, monkeypatch):
    hide("tensorrt-llm")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(["doctor"]) == 0
    assert "MASTER_ADDR         127.0.0.1 is 127.0.0.1" in capsys.readouterr().out
    monkeypatch.setenv("MASTER_ADDR", "no-such-machine.invalid")
    assert main(["doctor"]) == 1
    assert "problem: MASTER_ADDR=no-such-machine.invalid has no address here" in capsys.readouterr().out


def test_a_gpu_machine_without_a_c_compiler_is_told_what_is_lost(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.look_at_compiler(num_gpus=0).notes == []
    (note,) = machine.look_at_compiler(num_gpus=1).notes
    assert "no C compiler" in note and "torch.compile" in note and "apt install gcc" in note
    monkeypatch.setenv("CC", "/usr/bin/cc")
    assert machine.look_at_compiler(num_gpus=1).rows["compiler"].startswith("/usr/bin/cc, with")
