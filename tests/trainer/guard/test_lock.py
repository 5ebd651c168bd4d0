"""Two processes in one folder: the second is told who holds it, and a holder that is dead does not count."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from socket import gethostname

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.guard import lock
from nemo_simplerl.trainer.guard.lock import Holder, Patience, held, held_outputs

# Holds the folder until its input ends; with a child that it has forked, and that outlives it.
HOLDER = """
import os, sys
from pathlib import Path
from nemo_simplerl.trainer.guard.lock import held
with held(Path(sys.argv[1]), "trainer.run_dir"):
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.stdin.close()
    os.kill(child, signal.SIGKILL)
    process.wait()


def _take(folder: Path, **patience: float) -> None:
    with held(folder, "trainer.run_dir", Patience(**{"silence": 0.3, "lease": 0.3, "exit": 0.1} | patience)):
        assert json.loads((folder / lock.RUNNING).read_text())["pid"] == os.getpid()


@contextmanager
def _touching(file: Path):
    """Touch the file, as its holder does, while the context lasts."""
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            os.utime(file)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()


def _elsewhere(folder: Path, **changes) -> None:
    """Leave the word of a holder on another machine."""
    folder.mkdir(exist_ok=True)
    holder = replace(lock._me(), machine="other-boot pid:[1]", host="node-7", pid=4711)
    (folder / lock.RUNNING).write_text(json.dumps(asdict(replace(holder, **changes))))


def test_a_second_process_is_told_who_holds_the_folder_and_a_killed_holder_holds_nothing(tmp_path, holder):
    said = rf"run is in use by process {holder.pid} on {gethostname()}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \("
    with pytest.raises(ValueError, match=said):
        _take(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(ValueError, match=f"process {holder.pid}"):
        _take(tmp_path / "link/../link/")
    holder.kill()
    holder.wait()
    _take(tmp_path / "run")  # although a child of the holder lives, and has its open files
    assert not (tmp_path / "run" / lock.RUNNING).exists()


def test_a_holder_on_another_machine_is_dead_once_it_stops_touching_its_file(tmp_path, caplog):
    _elsewhere(tmp_path)
    with _touching(tmp_path / lock.RUNNING), pytest.raises(ValueError, match="in use by process 4711 on node-7"):
        _take(tmp_path, silence=5.0)
    _take(tmp_path)
    assert "was held by process 4711 on node-7" in caplog.text


def test_a_lock_of_another_machine_is_waited_for_until_the_file_system_lets_go_of_it(tmp_path, monkeypatch, caplog):
    _elsewhere(tmp_path)
    answers = [False] * 3
    monkeypatch.setattr(lock, "_lock", lambda descriptor: answers.pop() if answers else True)
    _take(tmp_path, lease=5.0)
    assert caplog.text.count("is locked by process 4711 on node-7") == 1


def test_a_lock_of_another_machine_is_refused_once_its_holder_is_seen_alive_or_keeps_it(tmp_path, monkeypatch):
    _elsewhere(tmp_path)
    monkeypatch.setattr(lock, "_lock", lambda descriptor: False)
    started = time.monotonic()
    with _touching(tmp_path / lock.RUNNING), pytest.raises(ValueError, match="in use by process 4711 on node-7"):
        _take(tmp_path, lease=60.0)
    assert time.monotonic() - started < 30
    with pytest.raises(ValueError, match="in use by process 4711 on node-7"):
        _take(tmp_path)


def test_a_killed_process_of_this_machine_may_take_a_moment_to_let_go(tmp_path, monkeypatch):
    _elsewhere(tmp_path, machine=lock.processes.machine(), started=1)
    answers = [False] * 3
    monkeypatch.setattr(lock, "_lock", lambda descriptor: answers.pop() if answers else True)
    _take(tmp_path, exit=5.0)


def test_where_the_file_system_has_no_locks_the_holders_process_decides(tmp_path, monkeypatch):
    def no_locks(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
    with held(tmp_path, "trainer.run_dir"), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        _take(tmp_path)
    _elsewhere(tmp_path, machine=lock.processes.machine(), started=1)  # that number is another process by now
    _take(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"trainer.run_dir=.*file cannot be written: File exists"):
        _take(tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot be written: Not a directory"):
        _take(tmp_path / "file/run")


def test_a_warm_start_outside_the_run_directory_is_held_too(tmp_path):
    shared = f"sft.output={tmp_path}/shared"
    with held_outputs(compose(["experiment=quickstart", f"trainer.run_dir={tmp_path}/one", shared])):
        _elsewhere(tmp_path / "shared.checkpoints", machine=lock.processes.machine(), pid=os.getpid())
        held_folder = sorted(path.name for path in (tmp_path / "shared.checkpoints").iterdir())
        assert held_folder == [lock.LOCK, lock.RUNNING]
    with held_outputs(compose(["experiment=quickstart", f"trainer.run_dir={tmp_path}/two"])):
        assert not (tmp_path / "two/sft.checkpoints").exists()


def test_what_a_holder_says_comes_back(tmp_path):
    with held(tmp_path, "--out"):
        found = Holder(**json.loads((tmp_path / lock.RUNNING).read_text()))
    assert (found.pid, found.host) == (os.getpid(), gethostname())
