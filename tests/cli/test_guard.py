"""The last words of a command: what is wrong with its input, on one line, after which it ends with 2."""

import errno
import json
import os
import subprocess
import sys
import tempfile

import pytest

from nemo_simplerl.cli.start import guard
from nemo_simplerl.cli.start.guard import guarded


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def ended(error: Exception):
    def start():
        raise error

    return guarded(start)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/é"),
            "error: /x/é: Permission denied; this user has no",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), "relative paths start in"),
        (OSError(errno.EISDIR, "Is a directory", "/x/.a.tmp", None, "/x/a"), "error: /x/a: Is a directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "make room there"),
        (ValueError("it is wrong"), "error: it is wrong\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, told):
    monkeypatch.setattr(guard.nemo_simplerl, "__file__", os.path.join(os.path.dirname(__file__), "x.py"))
    assert ended(error) == 2
    captured = capsys.readouterr().err
    assert told in captured and len(captured.splitlines()) == 1


def test_a_librarys_complaint_is_told_with_the_way_to_where_it_came_from(capsys):
    assert guarded(lambda: int("x")) == 2
    assert "SIMPLERL_DEBUG=1 shows where" in capsys.readouterr().err


@pytest.mark.parametrize("start", [lambda: int("x"), lambda: os.stat("/no/such/file")])
def test_the_traceback_of_what_may_be_a_fault_of_ours_is_kept(tmp_path, capsys, start):
    assert guarded(start) == 2
    (kept,) = tmp_path.glob("simplerl-traceback-*.txt")
    assert str(kept) in capsys.readouterr().err
    assert "<lambda>" in kept.read_text() and "Error: " in kept.read_text()


def test_without_room_for_the_traceback_the_line_is_told_alone(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    assert guarded(lambda: int("x")) == 2
    assert capsys.readouterr().err.endswith("(SIMPLERL_DEBUG=1 shows where)\n")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_fault_of_the_machine_is_no_unusable_input_and_says_what_to_do(number):
    with pytest.raises(OSError, match="(?s)the machine's words; .*(look at it|start again|ulimit)") as raised:
        ended(OSError(number, "the machine's words", "/x"))
    assert raised.value.errno == number


@pytest.mark.parametrize(
    "error", [KeyError("a"), AssertionError(), RuntimeError("no"), OSError(errno.ECONNRESET, "reset"), TypeError()]
)
def test_a_fault_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        ended(error)


def test_on_request_the_traceback_is_shown(monkeypatch):
    monkeypatch.setenv("SIMPLERL_DEBUG", "1")
    with pytest.raises(ValueError, match="mine"):
        ended(ValueError("mine"))


def test_under_torchrun_the_first_rank_of_a_machine_speaks_through_its_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ended(ValueError("mine")) == 2
    assert capsys.readouterr().err == ""
    assert "error: mine" in json.loads((tmp_path / "error.json").read_text())["message"]["extraInfo"]["py_callstack"]


def test_under_torchrun_another_rank_waits_to_be_ended_and_speaks_only_then(monkeypatch, tmp_path):
    waited = []
    monkeypatch.setattr(guard.time, "sleep", waited.append)
    for name, value in {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "e.json"), "RANK": "9", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ended(ValueError("mine")) == 2
    assert waited == [guard._PATIENCE_S]
    assert "rank 9: error: mine" in (tmp_path / "e.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        (["train", "experiment=quickstart", "algo.kl_coeff=1", "sft.output=null"], "Did you mean algo.kl_coef?"),
        (["eval", "m"], "the following arguments are required: --data, --out"),
    ],
)
def test_under_torchrun_a_mistake_is_the_last_thing_on_the_terminal(command, mistake):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nemo_simplerl"]
        + command,
        capture_output=True,
        text=True,
    )
    *_, told, line = done.stderr.strip().splitlines()
    assert mistake in told and set(line) == {"="}
    assert done.returncode == 1 and done.stderr.count(mistake) == 1 and done.stdout == ""
