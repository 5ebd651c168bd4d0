"""The engine's process: answers, errors, silence and every way to end, with a toy in the place of vLLM."""

import multiprocessing
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from nemo_simplerl.rollout.vllm.process import EngineProcess

# Stands in for the Python of vLLM's environment: it gets the same command line.
TOY = f"""#!{sys.executable}
import multiprocessing, os, sys, time
from pathlib import Path
sys.path[:0] = [os.environ["PYTHONPATH"]]
from nemo_simplerl.rollout.vllm import child
from nemo_simplerl.rollout.vllm.wire import Channel

class Toy:
    def __init__(self, sign_of_life):
        self.sign_of_life = sign_of_life
    def echo(self, value):
        return value
    def fail(self):
        raise ValueError("no such weights")
    def hang(self):
        time.sleep(60)
    def work(self, seconds):
        for _ in range(int(seconds / 0.05)):
            time.sleep(0.05)
            self.sign_of_life()
        return "done"
    def die(self):
        print("out of memory, said the kernel", flush=True)
        os.kill(os.getpid(), 9)
    def start_worker(self):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        return worker.pid
    def close(self):
        pass

if sys.argv[1:3] != ["-m", "nemo_simplerl.rollout.vllm.child"]:
    sys.exit(f"called with {{sys.argv}}")
child._BEAT_S = 0.1
child.serve(Channel(int(sys.argv[3]), int(sys.argv[4])), Toy, Path(sys.argv[5]))
"""


@pytest.fixture
def start(tmp_path):
    python, started = tmp_path / "python", []
    python.write_text(TOY)
    python.chmod(0o755)

    def start() -> EngineProcess:
        started.append(EngineProcess(str(python), dict(os.environ), "the toy"))
        return started[-1]

    yield start
    for process in started:
        process.close()


def is_gone(pid: int, seconds: float = 8) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_it_answers_and_leaves_nothing_when_closed(start):
    process = start()
    assert process.call("echo", [1, 0.1], timeout_s=20) == [1, 0.1]
    worker = process.call("start_worker", timeout_s=20)
    assert process.call("work", 0.6, timeout_s=0.4) == "done", "signs of life count"
    folder = process.folder
    process.close()
    process.close()
    assert is_gone(worker) and is_gone(process.pid) and not folder.exists()
    with pytest.raises(RuntimeError, match="the toy .* ended in `echo`"):
        process.call("echo", 1, timeout_s=1)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("fail", r"the toy \(process \d+, .*python\) failed in `fail`: ValueError: no such weights; it was ended; "),
        ("die", "the toy .* ended in `die` with signal SIGKILL; the end of its log:\n  out of memory, said the kernel"),
        ("hang", "the toy .* gave no sign of life for 0.5 s in `hang` and was ended$"),
    ],
)
def test_every_error_names_the_engine_and_ends_it(start, monkeypatch, method, told):
    monkeypatch.setattr("nemo_simplerl.rollout.vllm.process._GRACE_S", 0.2)
    process = start()
    assert process.call("echo", 1, timeout_s=20) == 1
    with pytest.raises(RuntimeError, match=told):
        process.call(method, timeout_s=0.5 if method == "hang" else 20)
    assert is_gone(process.pid, 0.1) and not process.folder.exists()


def test_its_folder_leaves_room_for_vllms_sockets_however_long_the_temporary_one_is(start, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert len(f"{start().folder}/{uuid.uuid4()}") <= 107


def test_a_program_that_does_not_start_is_quoted(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho No module named vllm\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    process = EngineProcess(str(tmp_path / "python"), dict(os.environ), "the toy")
    with pytest.raises(RuntimeError, match="in `start` with exit status 3; the end of its log:\n  No module named"):
        process.call("start", timeout_s=20)


def test_an_interrupted_call_ends_it(start):
    process = start()
    assert process.call("echo", 1, timeout_s=20) == 1

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.call("work", 5, timeout_s=20)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert is_gone(process.pid, 0.1)


def hold_an_engine(python: str, sender) -> None:
    process = EngineProcess(python, dict(os.environ), "the toy")
    worker = process.call("start_worker", timeout_s=20)
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    forked.start()  # as a grader is: it must not keep the engine's pipe open
    sender.send((process.pid, worker, str(process.folder), forked.pid))
    process.call("hang", timeout_s=100)


def test_it_ends_with_all_it_started_when_its_parent_is_killed(start, tmp_path):
    receiver, sender = multiprocessing.Pipe()
    parent = multiprocessing.get_context("fork").Process(target=hold_an_engine, args=(str(tmp_path / "python"), sender))
    parent.start()
    engine, worker, folder, forked = receiver.recv()
    parent.kill()
    parent.join()
    assert is_gone(engine) and is_gone(worker)
    assert not Path(folder).exists()
    os.kill(forked, signal.SIGKILL)
