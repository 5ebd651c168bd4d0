"""The engine's process as the trainer sees it: it is started, called and ended here, and its end is put into words."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nemo_simplerl
from nemo_simplerl.rollout.own_process.short_folder import make_short_folder
from nemo_simplerl.rollout.vllm.wire import Channel

_LONGEST_SOCKET = len("/00000000-0000-0000-0000-000000000000")  # vLLM's, of two workers or more, in TMPDIR
_MODULE = "nemo_simplerl.rollout.vllm.child"
_LAST_LINES = 15  # of the process's log, which an error quotes
_GRACE_S = 10.0  # seconds that a process gets to end by itself
_HELPERS_S = 1.0  # and its helpers after it


class EngineProcess:
    """A process of another Python environment that answers calls one at a time, and ends when this one does.

    python: the interpreter. It imports this package, and nothing else of this process's environment. environment: its
    variables, all of them. name: of the engine, in errors.
    """

    def __init__(self, python: str, environment: Mapping[str, str], name: str):
        self._folder = make_short_folder("simplerl-vllm-", _LONGEST_SOCKET, "vLLM")
        (self._folder / "nemo_simplerl").symlink_to(Path(nemo_simplerl.__file__).parent)
        self._log = self._folder / "log.txt"
        (theirs_reads, ours_writes), (ours_reads, theirs_writes) = os.pipe(), os.pipe()
        self._channel = Channel(ours_reads, ours_writes)
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [python, "-m", _MODULE, str(theirs_reads), str(theirs_writes), str(self._folder)],
                    env={**environment, "PYTHONPATH": str(self._folder), "TMPDIR": str(self._folder)},
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs_reads, theirs_writes),
                    start_new_session=True,  # a signal of the terminal is the trainer's to answer
                )
        except BaseException:
            self._channel.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            os.close(theirs_reads)
            os.close(theirs_writes)
        self._status: str | None = None  # how the process ended, in words; None while it runs
        self._last_lines = ""  # of its log then, for an error message
        self.name = f"{name} (process {self._process.pid}, {python})"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def folder(self) -> Path:
        """A folder of this process alone, which is deleted when it ends."""
        return self._folder

    def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """What the process answers. The process is ended by every error, and the error says how.

        timeout_s: seconds without a sign of life. Raises RuntimeError, naming the engine, where the process has ended
        or ends, gives no sign, or answers with an error.
        """
        try:
            self._channel.send((method, args), timeout_s)
            while (answer := self._channel.receive(timeout_s))[0] == "alive":
                pass
        except EOFError:
            self._end()
            raise RuntimeError(f"{self.name} ended in `{method}` with {self._status}{self._last_lines}") from None
        except TimeoutError:
            self._end()
            told = f"gave no sign of life for {timeout_s:g} s in `{method}` and was ended"
            raise RuntimeError(f"{self.name} {told}{self._last_lines}") from None
        except BaseException:  # an interrupt: the answer that is still to come belongs to no later call
            self._end()
            raise
        kind, value = answer
        if kind == "error":
            self._end()
            told = f"failed in `{method}`: {value.rstrip('.')}; it was ended"
            raise RuntimeError(f"{self.name} {told}{self._last_lines}")
        return value

    def close(self) -> None:
        """End the process and what it started, and delete its folder. Harmless when ended."""
        self._end()

    def _end(self) -> None:
        """End the process and what it started, once, and keep how it ended and the end of its log."""
        if self._status is not None:
            return
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        self._channel.close()  # it ends itself at the end of the pipe, and leaves nothing behind
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
            self._wait_for_helpers()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # itself where it has not ended, and what it started
        status = self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._status = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        if lines:
            self._last_lines = "\n  ".join(["; the end of its log:", *lines[-_LAST_LINES:]])

    def _wait_for_helpers(self) -> None:
        """Wait a moment for the helpers of the ended process, which free its shared memory."""
        deadline = time.monotonic() + _HELPERS_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, 0)
                time.sleep(0.02)
