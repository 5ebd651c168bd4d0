"""The private Ray cluster: where its sockets go, and what a start that fails leaves behind."""

import subprocess
import sys
import tempfile
from types import SimpleNamespace

import psutil
import pytest

from nemo_simplerl.rollout.own_process.short_folder import room_for, short_folder
from nemo_simplerl.rollout.trtllm import ray_cluster
from nemo_simplerl.rollout.trtllm.ray_cluster import start_ray


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_passed_over_and_it_is_said(tmp_path, caplog):
    session = "/session_2026-11-28_21-00-00_123456_4194304/sockets/plasma_store"
    longest = "/" + "x" * (107 - len("/simplerl-ray-abcdefgh") - len(session) - 1)
    ray = {"room": room_for(ray_cluster._PREFIX, ray_cluster._BELOW_FOLDER), "owner": "Ray"}
    assert short_folder(longest, (), **ray) == longest
    too_long = longest + "y"
    assert short_folder(too_long, ("/no/such/folder", "/tmp"), **ray) == "/tmp"
    assert f"the temporary folder {too_long} has a path of {len(too_long)} bytes" in caplog.text
    with pytest.raises(OSError, match="Set TMPDIR to a folder with a short path"):
        short_folder(too_long, ("/no/such/folder", str(tmp_path / ("z" * 60))), **ray)


@pytest.fixture
def ray(monkeypatch):
    """A Ray whose init starts a process, as the real one does, and forgets it in its error."""

    def init(*, _temp_dir, **_):
        fake.folder = _temp_dir
        sleeps = "import time; time.sleep(60)"
        fake.started = subprocess.Popen([sys.executable, "-c", sleeps, f"--session-dir={_temp_dir}/session_1"])
        raise RuntimeError("the raylet did not answer")

    fake = SimpleNamespace(init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", fake)
    yield fake
    fake.started.kill()
    fake.started.wait()


def test_a_start_that_fails_leaves_neither_processes_nor_folder(ray, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("d" * 90)))
    with pytest.raises(RuntimeError, match="the raylet did not answer"):
        start_ray(num_gpus=1)
    assert ray.folder.startswith("/tmp/simplerl-ray-"), "a SLURM job's TMPDIR is longer than Ray's sockets take"
    assert not psutil.pid_exists(ray.started.pid) or ray.started.poll() is not None
    assert not ray_cluster.Path(ray.folder).exists()
