"""A run that is killed with SIGKILL at random points, or cannot save, ends as one that was left alone."""

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support.forked_runs import different, kill_runs, problems_in, start

APART = ["placement.actor=0", "placement.critic=1", "placement.engine=2"]
AHEAD = ["rollout.ahead=1", "rollout.consistency.policy=correct"]
EVERY_STEP = ["trainer.max_steps=3", "trainer.save_every=1", "trainer.eval_every=0"]


@pytest.mark.long
def test_a_run_killed_five_times_ends_as_one_left_alone(tmp_path):
    points, differences = kill_runs(tmp_path, kills=5, ranks=1, seed=3)
    assert sum(points.values()) == 5 and len(points) > 2
    assert differences == []


@pytest.mark.long
def test_so_does_one_of_two_ranks(tmp_path):
    points, differences = kill_runs(tmp_path, kills=3, ranks=2, seed=4)
    assert sum(points.values()) == 3
    assert differences == []


@pytest.mark.long
def test_so_does_one_whose_roles_live_apart_and_that_samples_a_step_ahead(tmp_path):
    points, differences = kill_runs(tmp_path, kills=4, ranks=3, seed=9, overrides=[*APART, *AHEAD])
    assert sum(points.values()) == 4 and len(points) > 2
    assert differences == []


def test_a_save_that_fails_is_told_and_the_next_succeeds(tmp_path):
    data = problems_in(tmp_path)
    faults = "fail@checkpoint.write#3;fail@checkpoint.rename#1;fail@journal.write#1;fail@log.metrics#2"
    for name, fault in (("alone", ""), ("full", faults)):
        assert start(tmp_path / name, [*data, *EVERY_STEP], 1, fault) == [0]
    output = (tmp_path / "full/output.txt").read_text()
    assert "the checkpoint of step 1 was NOT saved: rank 0: No space left on device" in output
    assert "the checkpoint of step 2 was NOT saved: No space left on device (fault at checkpoint.rename)" in output
    assert "the journal of step 1 could not be written" in output
    assert different(tmp_path / "alone", tmp_path / "full") == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB at run/checkpoints."""
    disk = tmp_path / "run/checkpoints"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here; a disk that fails is tested beside it")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_run_goes_on_while_its_disk_is_full_and_saves_again_once_there_is_room(tmp_path, small_disk):
    data = problems_in(tmp_path)
    run_dir, ballast = tmp_path / "run", small_disk / "ballast"
    ballast.write_bytes(bytes((4 << 20) - 100_000))

    def make_room() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and "step 1 was NOT saved" not in _output(run_dir):
            time.sleep(0.05)
        ballast.unlink()

    remover = threading.Thread(target=make_room)
    remover.start()
    assert start(run_dir, [*data, *EVERY_STEP], 1, "delay@rollout#3,seconds=3") == [0]
    remover.join()
    assert "step 1 was NOT saved: rank 0: No space left on device" in _output(run_dir)
    assert "step 3 was NOT saved" not in _output(run_dir)
    assert (small_disk / "latest").read_text() == "step_000003\n"
    assert json.loads((small_disk / "step_000003/manifest.json").read_text())["step"] == 3


def _output(run_dir: Path) -> str:
    path = run_dir / "output.txt"
    return path.read_text() if path.exists() else ""
