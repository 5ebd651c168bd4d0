"""The parent's side of one reward worker: a child process, its two pipes, and a deadline on every byte."""

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from nemo_simplerl.python_child import module_command
from nemo_simplerl.reward.serving.worker import HEADER, encode_frame

WORKER_COMMAND = module_command("nemo_simplerl.reward.serving.worker")
_MAX_ANSWER_BYTES = 65536  # a worker's frames take under a hundred; the traceback of a function is cut


class WorkerLate(Exception):
    """The deadline passed before the worker answered."""


class WorkerDied(Exception):
    """The worker ended, or answered with something that is not a frame."""


class WorkerUnusable(RuntimeError):
    """The worker started, and said why it cannot grade: another one could not either."""


class WorkerProcess:
    """A running worker. One thread sends and receives; any thread may `terminate` it.

    Linux kills the child when the thread that made this object ends (see `worker.serve`), so that thread must
    live as long as the worker.
    """

    def __init__(self, command: Sequence[str], memory_limit_mb: int) -> None:
        """Start `command` with the memory limit in MB and this process's id as its last two arguments."""
        self._command = [*command, str(memory_limit_mb), str(os.getpid())]
        self._process = subprocess.Popen(self._command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        # A worker that does not read must not block the writer.
        os.set_blocking(self._requests.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the worker's first frame. RuntimeError where it does not come, WorkerUnusable where it says why."""
        try:
            hello = self.receive(time.monotonic() + timeout_s)
        except (WorkerLate, WorkerDied) as error:
            self.discard()
            raise RuntimeError(
                f"a reward worker did not start: {' '.join(self._command)} ended with code "
                f"{self._process.returncode} ({error}). Its standard error says why; "
                "a reward.memory_limit_mb too low to hold Python does this too."
            ) from error
        if isinstance(hello, dict) and "ready" in hello:
            return
        self.discard()
        if isinstance(hello, dict) and "unusable" in hello:
            raise WorkerUnusable(hello["unusable"])
        raise RuntimeError(f"{' '.join(self._command)} is no reward worker: its first frame was {hello!r:.100}")

    def send(self, items: Sequence[Any], deadline: float) -> None:
        """Write one request. `deadline` is in seconds of `time.monotonic`. Raises WorkerLate, WorkerDied."""
        rest = memoryview(encode_frame(list(items)))
        while rest:
            self._wait(self._requests.fileno(), select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._requests.fileno(), rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise WorkerDied("its input is closed") from error

    def receive(self, deadline: float) -> Any:
        """The next message of the worker. Raises WorkerLate, WorkerDied."""
        (size,) = HEADER.unpack(self._read(HEADER.size, deadline))
        if size > _MAX_ANSWER_BYTES:
            raise WorkerDied(f"it announced a frame of {size} bytes")
        body = self._read(size, deadline)
        try:
            return json.loads(body)
        except ValueError as error:
            raise WorkerDied(f"it sent {body!r:.100}") from error

    def terminate(self) -> None:
        """Kill the process now. The thread that uses it then gets WorkerDied and calls `discard`."""
        self._process.kill()

    def discard(self) -> None:
        """Kill the process, reap it and close the pipes. Safe to repeat."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()

    def _read(self, size: int, deadline: float) -> bytes:
        parts = b""
        while len(parts) < size:
            self._wait(self._answers.fileno(), select.POLLIN, deadline)
            part = os.read(self._answers.fileno(), size - len(parts))
            if not part:
                raise WorkerDied("its output ended")
            parts += part
        return parts

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        """Wait until the pipe is ready. An answer that has arrived counts even when it is read after the deadline."""
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, 1000.0 * (deadline - time.monotonic()))):
            raise WorkerLate("the deadline passed")
