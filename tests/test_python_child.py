"""Files of the user's that are named like standard modules stop neither a worker, nor a server, nor a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_simplerl.python_child import module_command, standard_library_first
from nemo_simplerl.reward.serving.pool import RewardPool
from support.servers import reward_server

ROOT = str(Path(__file__).parents[1])
LIBRARY = os.path.dirname(os.__file__)
STANDARD = ("http", "fractions", "json", "email", "decimal", "struct", "select", "random", "argparse", "uuid")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, in which every one of these modules fails."""
    for name in STANDARD:
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} of the working directory')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_working_directory_is_searched_after_the_standard_library_and_before_what_is_installed(folder):
    dynamic, here = os.path.join(LIBRARY, "lib-dynload"), str(folder)
    before = [here, "", "/elsewhere", LIBRARY, dynamic, "/site-packages"]
    assert standard_library_first(before) == ["/elsewhere", LIBRARY, dynamic, here, "", "/site-packages"]
    assert standard_library_first([LIBRARY, here]) == [LIBRARY, here]


@pytest.mark.parametrize("path", [None, "", ":", "here"])
def test_a_reward_worker_starts_beside_files_named_like_standard_modules(folder, monkeypatch, path):
    inherited = [ROOT] if path is None else [ROOT, str(folder) if path == "here" else path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(inherited))
    with RewardPool(1, timeout_s=5.0, memory_limit_mb=512) as pool:
        assert pool.grade([("1/2", r"\boxed{0.5}")])[0].verdict == "correct"


def test_a_reward_server_and_a_command_start_beside_them(folder):
    with reward_server() as server:
        assert server.url
    environment = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, "-m", "nemo_simplerl", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("nemo_simplerl"), done.stderr


def test_a_child_runs_this_copy_of_the_package_with_its_own_arguments(folder):
    (folder / "nemo_simplerl").mkdir()
    (folder / "nemo_simplerl/__init__.py").write_text("raise SystemExit('another copy')")
    done = subprocess.run([*module_command("nemo_simplerl.__main__"), "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no command 'nonsense'" in done.stderr
