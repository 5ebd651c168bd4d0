"""The shell scripts parse and tell their usage; env.sh decides as it says. Nothing is installed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import program

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *(path for room in ("scripts", "docker") for path in (ROOT / room).rglob("*") if path.suffix in (".sh", ".sbatch")),
    ROOT / ".ci/run",
]
COMMANDS = (
    "scripts/quickstart.sh",
    "scripts/real_model.sh",
    "scripts/train.sh",
    "scripts/stop.sh",
    "scripts/launch_env.sh",
    "scripts/test.sh",
    "scripts/check.sh",
    "scripts/gpu_first_hour.sh",
    "scripts/gpu_wheels.sh",
    "scripts/engine_env.sh",
    "scripts/slurm/submit.sh",
    "scripts/slurm/node.sh",
    "docker/run.sh",
    "docker/install.sh",
)


def shell(code, *, path=None, root=ROOT, **env):
    """Run bash code after sourcing env.sh, with these variables alone and `path` first on PATH."""
    env = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin", "HOME": os.environ["HOME"]} | env
    code = f'set -euo pipefail; source "{root}/scripts/env.sh"; {code}'
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("script", sorted(SCRIPTS), ids=lambda path: path.name)
def test_a_script_parses(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing_in_the_scripts():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed; the dev extra brings it")
    done = subprocess.run([program, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_tells_its_usage_from_any_folder_without_making_an_environment(name, tmp_path):
    env = os.environ | {"VENV": str(tmp_path / "venv")}
    script = ROOT / name
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, "--help"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {name}" in done.stdout
    assert "set -euo" not in done.stdout
    assert os.listdir(tmp_path) == []


def test_the_first_python_that_runs_and_is_supported_is_picked(tmp_path):
    broken = 'echo "shim: command not found" >&2; exit 127'
    program(tmp_path, "python3.11", broken)
    program(tmp_path, "python3.12", f'exec "{sys.executable}" "$@"')
    done = shell("pick_python", path=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/python3.12\n")


def test_without_a_supported_python_the_error_says_what_was_found_and_what_helps(tmp_path):
    for name in ("python3.10", "python3.11", "python3.12", "python3"):
        program(tmp_path, name, '[ "$1" = --version ] && echo "Python 3.8.1"; exit 1')
    empty = {"HOME": str(tmp_path), "path": tmp_path}
    done = shell("python=$(pick_python); echo not reached", **empty)
    assert done.returncode == 1 and done.stdout == ""
    assert "no Python 3.10, 3.11 or 3.12" in done.stderr
    assert "Python 3.8.1" in done.stderr and "PYTHON=" in done.stderr
    done = shell("use_newest_versions; python=$(pick_python)", **empty)
    assert "no Python 3.12 on PATH" in done.stderr and "PYTHON=/path/to/python3.12" in done.stderr


def test_a_python_of_pyenvs_is_found_where_its_shim_does_not_run(tmp_path):
    for name in ("python3.10", "python3.11", "python3.12", "python3"):
        program(tmp_path, name, "exit 127")
    kept = tmp_path / ".pyenv/versions/3.12.1/bin"
    kept.mkdir(parents=True)
    program(kept, "python3", '[ "$3" = 3.12 ]')  # as is_supported asks
    done = shell("use_newest_versions; pick_python", path=tmp_path, HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"{kept}/python3\n"), done.stderr


def test_a_python_that_was_named_is_taken_or_refused_but_never_replaced(tmp_path):
    named = program(tmp_path, "mine", f'exec "{sys.executable}" "$@"')
    assert shell("pick_python", PYTHON=str(named)).stdout == f"{named}\n"
    done = shell("pick_python", PYTHON=str(tmp_path / "missing"))
    assert done.returncode == 1 and done.stdout == ""
    assert f"PYTHON={tmp_path}/missing does not run" in done.stderr


def test_a_folder_with_other_things_in_it_is_never_made_an_environment(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    done = shell("prepare_env", VENV=str(tmp_path))
    assert done.returncode == 1
    assert "a folder with other things in it" in done.stderr
    assert os.listdir(tmp_path) == ["thesis.tex"]


def stamp(root, extras):
    """An environment that looks installed; answers the shell variables that select it."""
    program_folder = root / "venv" / "bin"
    program_folder.mkdir(parents=True)
    program(program_folder, "python", f'exec "{sys.executable}" "$@"')
    (root / "venv/pyvenv.cfg").touch()
    wanted = shell("wanted_stamp", root=root).stdout
    (root / "venv/.installed").write_text(f"{wanted}{extras}\n")
    return {"root": root, "VENV": str(root / "venv")}


def test_an_installation_is_kept_until_setup_or_pins_change_and_for_extras_it_has(copy):
    where = stamp(copy, "dev,gpu")
    for extras in ("", "dev", "gpu,dev"):
        assert shell(f"is_installed '{extras}'", **where).returncode == 0
    assert shell("is_installed dev,trtllm", **where).returncode == 1
    assert shell('prepare_env dev; echo "$PY"', **where).stdout == f"{copy}/venv/bin/python\n"
    with open(copy / "constraints.txt", "a") as file:
        file.write("# a pin changed\n")
    assert shell("is_installed dev", **where).returncode == 1


def test_the_newest_versions_have_a_folder_and_pins_of_their_own(copy):
    show = 'echo "$VENV"; basename "$CONSTRAINTS"'
    assert shell(f"use_newest_versions; {show}", root=copy).stdout == f"{copy}/.venv-newest\nconstraints-newest.txt\n"
    assert shell(f"use_newest_versions; {show}", root=copy, VENV="/mine").stdout.startswith("/mine\n")
    before = [shell(f"{use} wanted_stamp", root=copy).stdout for use in ("", "use_newest_versions;")]
    with open(copy / "constraints-newest.txt", "a") as file:
        file.write("# a pin changed\n")
    after = [shell(f"{use} wanted_stamp", root=copy).stdout for use in ("", "use_newest_versions;")]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_without_a_python_for_the_newest_versions_their_tests_say_so_and_end_with_a_status_of_their_own(tmp_path):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "VENV": str(tmp_path / "venv"), "PYTHON": "false"}
    done = subprocess.run([ROOT / "scripts/test.sh", "--newest"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (69, "")
    assert "the newest versions were not tested: PYTHON=false does not run or is not Python 3.12" in done.stderr
    assert os.listdir(tmp_path) == []


def test_an_installation_that_points_at_another_checkout_is_made_anew(copy):
    where = stamp(copy, "dev")
    moved = copy.with_name("moved")
    copy.rename(moved)
    assert shell("is_installed dev", root=moved, VENV=str(moved / "venv")).returncode == 1
    assert where["root"] == copy


def test_a_later_call_installs_what_it_needs_beside_what_was_there_and_stamps_it_last(copy):
    where = stamp(copy, "dev")
    with open(copy / "setup.py", "a") as file:
        file.write("# changed\n")
    code = 'pip_install() { echo "pip [$1]"; test ! -f "$VENV/.installed" || echo "stamped too soon"; }; '
    done = shell(code + "prepare_env gpu; is_installed dev,gpu && echo kept", **where)
    assert done.stdout == "pip [dev,gpu]\nkept\n", done.stderr


def test_an_installation_that_fails_shows_the_log_and_leaves_no_stamp(copy):
    where = stamp(copy, "")
    code = 'pip_install() { echo "No space left on device" >"$VENV/install.log"; return 1; }; '
    done = shell(code + "prepare_env dev", **where)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "install.log" in done.stderr
    assert not (copy / "venv/.installed").exists()


def test_two_shells_do_not_install_at_once(copy):
    if shutil.which("flock") is None:
        pytest.skip("flock is not installed")
    where = stamp(copy, "")
    code = 'pip_install() { echo start >>"$VENV/log"; sleep 0.3; echo end >>"$VENV/log"; }; prepare_env dev'
    done = shell(f"({code}) & ({code}) & wait", **where)
    assert (copy / "venv/log").read_text() == "start\nend\n", done.stderr


@pytest.mark.parametrize(("cores", "nproc", "threads"), [(8, 2, "4"), (2, 4, "1"), (16, 1, "16")])
def test_processes_share_the_cores_as_threads(cores, nproc, threads):
    code = f'num_cores() {{ echo {cores}; }}; use_threads {nproc}; echo "$OMP_NUM_THREADS"'
    assert shell(code).stdout == f"{threads}\n"
    assert shell(code, OMP_NUM_THREADS="3").stdout == "3\n"


def test_gpus_are_counted_as_the_run_will_see_them(tmp_path):
    program(tmp_path, "nvidia-smi", 'echo "GPU 0: X"; echo "  MIG 1g.10gb Device 0"; echo "GPU 1: X"')
    assert shell("num_gpus", path=tmp_path).stdout == "2\n"
    assert shell("num_gpus", path=tmp_path, CUDA_VISIBLE_DEVICES="3").stdout == "1\n"
    assert shell("num_gpus", path=tmp_path, CUDA_VISIBLE_DEVICES="").stdout == "0\n"


def test_a_launch_is_plain_python_for_one_process_and_torchrun_for_more(tmp_path):
    show = program(tmp_path, "python", 'echo "$@"')
    code = f'PY="{show}"; launch'
    assert shell(f"{code} 1 train 'a=[1, 2]'").stdout == "-m nemo_simplerl train a=[1, 2]\n"
    assert shell(f"{code} 2 train seed=1").stdout == (
        "-m nemo_simplerl train seed=1 --check\n"
        "-m torch.distributed.run --standalone --nproc_per_node 2 -m nemo_simplerl train seed=1\n"
    )


def test_settings_that_cannot_be_used_are_told_once_before_ranks_are_started(tmp_path):
    show = program(
        tmp_path, "python", '[ "$4" = --check ] && { echo "config: $WORLD_SIZE ranks" >&2; exit 2; }; echo "$@"'
    )
    done = shell(f'PY="{show}"; launch 2 train', NNODES="2", NODE_RANK="0", MASTER_ADDR="one")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "config: 4 ranks"


def test_on_several_machines_every_one_starts_torchrun_at_its_own_rank_and_the_same_place(tmp_path):
    show = program(tmp_path, "python", 'echo "$@"')
    done = shell(f'PY="{show}"; launch 1 train', NNODES="2", NODE_RANK="1", MASTER_ADDR="one")
    assert done.stdout == (
        "-m nemo_simplerl train --check\n"
        "-m torch.distributed.run --nnodes 2 --node_rank 1 --master_addr one --master_port 29500 --nproc_per_node 1 "
        "-m nemo_simplerl train\n"
    )
    assert "machine 1 of 2, 1 rank on each" in done.stderr and "meeting at one:29500" in done.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"NODE_RANK": "0"}, "needs MASTER_ADDR"),
        ({"MASTER_ADDR": "one"}, "needs NODE_RANK=0 to 1"),
        ({"MASTER_ADDR": "one", "NODE_RANK": "2"}, "NODE_RANK=2, but NNODES=2 machines count from 0"),
        ({"MASTER_ADDR": "one", "NODE_RANK": "x"}, "needs NODE_RANK=0 to 1"),
    ],
)
def test_a_machine_that_does_not_know_its_place_does_not_start(env, words):
    done = shell("PY=echo; launch 1 train", NNODES="2", **env)
    assert done.returncode == 1 and done.stdout == "" and words in done.stderr


def test_a_launch_says_what_it_chose(tmp_path):
    show = program(tmp_path, "python", ":")
    code = f'num_cores() {{ echo 8; }}; PY="{show}"; launch'
    assert shell(f"{code} 1 train", VENV="/venv").stderr == "1 rank, OMP_NUM_THREADS=8, 0 GPUs; Python: /venv\n"
    assert shell(f"{code} 2 train", VENV="system", CUDA_VISIBLE_DEVICES="0,1").stderr == (
        f"2 ranks, OMP_NUM_THREADS=4, 2 GPUs, meeting at a free port of this machine; Python: {show} as it is\n"
    )


@pytest.mark.parametrize("count", ["0", "two", "-1", ""])
def test_a_process_count_that_is_none_is_refused(count):
    done = shell(f"check_count NPROC '{count}'")
    assert done.returncode == 1
    assert f"NPROC={count} is not a number of processes" in done.stderr


def test_train_without_overrides_tells_its_usage_as_an_error():
    done = subprocess.run([ROOT / "scripts/train.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: scripts/train.sh" in done.stderr
