"""The environment of vLLM and the tests that need it, with a Python that only says what it was asked."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.programs import program

ROOT = Path(__file__).parents[2]

# What env.sh and engine_env.sh ask of a Python. What it installs and runs is written to $TOLD.
PYTHON = """
case "$*" in
  *"import re, sys"*) exit 0 ;;
  *"import ensurepip, venv"*) exit 0 ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg"; echo made >>"$TOLD" ;;
  *" install "*)
    echo "$*${PIP_CONSTRAINT:+ under $PIP_CONSTRAINT}" >>"$TOLD"
    [ -z "${PIP_SAYS:-}" ] || { echo "$PIP_SAYS" >&2; exit 1; } ;;
  *"from vllm import"*)
    echo "imported${LD_LIBRARY_PATH:+ with $LD_LIBRARY_PATH}" >>"$TOLD"
    [ -z "${IMPORT_SAYS:-}" ] || { echo "$IMPORT_SAYS" >&2; exit 1; } ;;
  *pytest*) echo "pytest with ${SIMPLERL_VLLM_PYTHON:-none}: $*" >>"$TOLD" ;;
esac
"""
NO_TORCH = "ERROR: No matching distribution found for torch==2.13.0+cpu"


@pytest.fixture
def run(copy, tmp_path):
    """Runs a script of the copy; returns what it printed, its status, and what the Python was asked."""
    program(tmp_path / "bin", "python3.11", PYTHON)
    told = tmp_path / "told"

    def run(name, *arguments, **env):
        told.write_text("")
        env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "TOLD": str(told)} | env
        done = subprocess.run([copy / name, *arguments], env=env, capture_output=True, text=True)
        return done, told.read_text().splitlines()

    run.root = copy
    return run


def test_the_pins_alone_are_installed_for_a_cpu_and_kept_until_they_change(run):
    done, told = run("scripts/engine_env.sh", "vllm")
    assert (done.returncode, done.stdout) == (0, f"{run.root}/.venv-vllm/bin/python\n"), done.stderr
    made, install, imported = told
    assert (made, imported) == ("made", "imported")
    assert install.endswith(f" --no-deps -r {run.root}/constraints-vllm.txt torch==2.13.0+cpu")
    again, told = run("scripts/engine_env.sh", "vllm")
    assert (again.stdout, told) == (done.stdout, [])
    with open(run.root / "constraints-vllm.txt", "a") as pins:
        pins.write("# another pin\n")
    done, told = run("scripts/engine_env.sh", "vllm")
    assert done.returncode == 0 and [line.split()[0] for line in told] == ["made", "-m", "imported"]


def test_a_machine_with_a_gpu_gets_the_cuda_build_of_the_same_version_held_by_the_pins(run, tmp_path):
    where = str(tmp_path / "elsewhere")
    done, told = run("scripts/engine_env.sh", "vllm", CUDA_VISIBLE_DEVICES="0", ENGINE_VENV=where)
    assert done.stdout == f"{where}/bin/python\n"
    assert told[1].endswith(f" -c {run.root}/constraints-vllm.txt vllm==0.32.0 xxhash")
    assert "no-deps" not in told[1]


def test_neither_pins_nor_libraries_of_another_python_reach_it(run):
    folders = "/usr/lib/python3/dist-packages/torch/lib:/usr/local/cuda/lib64:/opt/site-packages/x:/opt/lib"
    leaked = {"PIP_CONSTRAINT": "/etc/pip/constraint.txt", "LD_LIBRARY_PATH": folders}
    done, told = run("scripts/engine_env.sh", "vllm", **leaked)
    assert done.returncode == 0, done.stderr
    assert "under" not in told[1] and told[2] == "imported with /usr/local/cuda/lib64:/opt/lib"


def test_where_pip_finds_no_build_the_reason_and_the_remedy_are_the_last_line_and_the_status_is_69(run, tmp_path):
    done, _ = run("scripts/engine_env.sh", "vllm", PIP_SAYS=NO_TORCH, SKIPPED=str(tmp_path / "skipped"))
    assert (done.returncode, done.stdout) == (69, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"vLLM 0.32.0 (cpu) cannot be had here: {NO_TORCH}; name PyTorch's CPU package index")
    assert (tmp_path / "skipped").read_text() == f"{last}\n"
    assert not (run.root / ".venv-vllm/.installed").exists()


def test_a_vllm_that_does_not_import_is_an_error_and_not_left_out(run):
    done, _ = run("scripts/engine_env.sh", "vllm", IMPORT_SAYS="RuntimeError: operator torchvision::nms does not exist")
    assert done.returncode == 1 and "torchvision::nms" in done.stderr and "cannot be imported" in done.stderr
    assert not (run.root / ".venv-vllm/.installed").exists()


@pytest.mark.parametrize("words", [(), ("sglang",), ("vllm", "--tpu"), ("vllm", "--cpu", "--cuda")])
def test_another_engine_or_build_is_answered_with_the_usage(run, words):
    done, told = run("scripts/engine_env.sh", *words)
    assert (done.returncode, told) == (2, []) and "usage: scripts/engine_env.sh vllm" in done.stderr


def test_the_tests_of_the_engines_run_with_the_environment_that_was_made_or_named(run):
    _, told = run("scripts/test.sh", "--engines", "tests/rollout/vllm", VENV="system", PYTHON="python3.11")
    assert f"pytest with {run.root}/.venv-vllm/bin/python:" in told[-1]
    assert " -m vllm and not gpu " in told[-1] and told[-1].endswith("tests/rollout/vllm")
    named = {"VENV": "system", "PYTHON": "python3.11", "SIMPLERL_VLLM_PYTHON": "/mine/python"}
    _, told = run("scripts/test.sh", "--engines", **named)
    assert [line.split(":")[0] for line in told] == ["pytest with /mine/python"]


def test_without_vllm_its_tests_are_left_out_and_the_last_lines_say_why(run):
    done, told = run("scripts/test.sh", "--engines", VENV="system", PYTHON="python3.11", PIP_SAYS=NO_TORCH)
    assert done.returncode == 69 and not any("pytest with" in line for line in told)
    assert NO_TORCH in done.stderr.splitlines()[-2]
    assert done.stderr.splitlines()[-1] == "the tests marked vllm were not run"


def test_the_plain_tests_leave_the_engines_out_and_say_so_last(run):
    done, told = run("scripts/test.sh", "-k", "x", VENV="system", PYTHON="python3.11")
    assert " -m not gpu and not vllm and not launchers and not long " in told[-1] and told[-1].endswith("-k x")
    assert done.stderr.splitlines()[-1].startswith("not run: --long runs")


@pytest.mark.parametrize("status", [0, 1])
def test_ci_ends_with_what_was_skipped_whatever_became_of_it(tmp_path, status):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    program(tmp_path / "scripts", "check.sh", "echo checked")
    skips = 'case $1 in --newest | --engines) echo "no ${1#--} here" >>"$SKIPPED"; exit 69 ;; esac'
    program(tmp_path / "scripts", "test.sh", f'echo "test.sh $1"; {skips}; exit {status}')
    done = subprocess.run([tmp_path / ".ci/run"], capture_output=True, text=True)
    first = ["checked", "test.sh "]
    last = [*(f"test.sh --{name}" for name in ("long", "newest", "engines", "launchers")), "Skipped", "no newest here"]
    expected = [*first, *last, "no engines here"] if status == 0 else first
    assert done.returncode == status
    assert done.stdout.splitlines()[: len(expected)] == expected
    assert "Skipped" in done.stdout
