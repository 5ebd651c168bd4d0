"""What the doctor prints and when it calls a setup broken. The packages are those of the double, or hidden."""

import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fakes.double import FAKES
from nemo_simplerl.cli.main import main


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
    rows = dict(line.split(maxsplit=1) for line in told.splitlines()[:12])
    assert rows["python"] == sys.version.split()[0]
    assert rows["torch"] == metadata.version("torch")
    assert rows["tensorrt-llm"] == "absent"
    assert rows["disk"].endswith(str(Path.cwd()))
    assert {"megatron-core", "transformers", "transformer-engine", "apex", "nemo-toolkit", "ray", "GPU", "shm"} <= set(
        rows
    )


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
