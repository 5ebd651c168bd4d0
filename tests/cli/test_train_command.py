"""`simplerl train` as a user types it: wrong settings end it before torch loads."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_simplerl.cli import train

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import sys
from nemo_simplerl.cli.main import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was loaded before the configuration was checked"
raise SystemExit(status)
"""


def simplerl(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize("command", ["train", "sft"])
def test_every_problem_is_told_with_status_2_before_torch_loads(command):
    done = simplerl(
        command, "experiment=quickstart", "actor.tensor_model_parallel_size=3", "algo.gama=1", "algo.gae_lambda=2"
    )
    assert done.returncode == 2, done.stderr
    for told in ("algo.gama is not a key", "algo.gamma", "algo.gae_lambda=2", "3 ranks"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_only_the_first_rank_speaks():
    done = simplerl("train", "experiment=quickstart", "algo.gama=1", RANK="1", WORLD_SIZE="2")
    assert done.returncode == 2
    assert done.stderr == done.stdout == ""


def test_a_report_that_cannot_be_written_takes_nothing_from_a_run_that_is_complete(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "nemo_simplerl.trainer.start", SimpleNamespace(start_training=lambda *given: True))
    config = SimpleNamespace(trainer=SimpleNamespace(run_dir=str(tmp_path)))
    assert train._start(0.0, config) == 0
    assert f"the report was NOT written: {tmp_path} is not a run directory" in capsys.readouterr().err

    def refuse(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "x/report.html")

    monkeypatch.setattr(train.report, "run", refuse)
    assert train._start(0.0, config) == 0
    assert "NOT written: No space left on device (x/report.html). The run is complete" in capsys.readouterr().err


def test_sft_says_what_it_needs():
    done = simplerl("sft", "experiment=quickstart", "sft.output=null")
    assert done.returncode == 2
    assert "sft.output" in done.stderr


def test_a_run_directory_of_other_settings_is_refused_before_torch_loads(tmp_path):
    from nemo_simplerl.config.load import load, to_yaml

    overrides = ["experiment=quickstart", f"trainer.run_dir={tmp_path}"]
    (tmp_path / "config.yaml").write_text(to_yaml(load(overrides, world_size=1)))
    done = simplerl("train", *overrides, "trainer.seed=7")
    assert done.returncode == 2
    assert "trainer.seed=7" in done.stderr and "begun with 1" in done.stderr


def test_help_tells_how_to_call_it():
    done = simplerl("train", "--help")
    assert done.returncode == 0
    assert "experiment=NAME" in done.stdout
