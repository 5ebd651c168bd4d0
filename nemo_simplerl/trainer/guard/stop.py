"""Stopping a run so that it can go on: who asks for it, and how all ranks agree on where.

SIGTERM, SIGUSR1, SIGINT, the file RUN_DIR/stop and the end of trainer.max_time ask. The ranks look at safe points:
before a phase and before an update. A second signal breaks off a rollout in hand too, at its next work batch; an
engine without a batch size (TensorRT-LLM) finishes it.

torchrun catches SIGTERM and SIGINT itself, hands them to its ranks, and kills after 30 s what has not ended by then
(newer ones wait for TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds). SIGUSR1 it dies of, and leaves the ranks behind: send it
to the ranks, or write the file.
"""

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from nemo_simplerl.config.durations import seconds_of
from nemo_simplerl.trainer.guard.faults import fault_point

STOP_FILE = "stop"  # in the run directory, as all of these
STOPPED_FILE = "stopped.json"
_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)


class Stopping(Exception):
    """The ranks have agreed to stop here. In words, who asked."""


class Stop:
    """Whether this run was asked to stop. As a context it listens to signals, on the main thread.

    started: time.monotonic() when the process began, from which `max_time` (DD:HH:MM:SS) counts.
    """

    def __init__(self, run_dir: Path, *, is_first_rank: bool, max_time: str | None, started: float):
        self._file, self._is_first_rank = run_dir / STOP_FILE, is_first_rank
        self._ends = None if max_time is None else started + seconds_of(max_time)
        self._num_signals = 0
        self._last_signal = 0
        # The largest asked for on any rank is the reason that all give.
        self._reasons = ["", f"trainer.max_time={max_time}", f"the file {self._file}", *(s.name for s in _SIGNALS)]
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def forget(self) -> None:
        """Remove the file that asked, and that of an earlier stop. On rank 0."""
        for path in (self._file, self._file.with_name(STOPPED_FILE)):
            path.unlink(missing_ok=True)

    @property
    def is_urgent(self) -> bool:
        """This rank was told twice."""
        return self._num_signals > 1

    def safe_point(self) -> None:
        """Raises Stopping on every rank where one was asked to stop. Collective."""
        asked = torch.tensor(self._asked())
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked:
            raise Stopping(self._reasons[int(asked)])

    def on_phase(self, name: str) -> None:
        """A fault point and then a safe point: call it at the beginning of a phase and before an update. Collective.

        A save, once begun, is not stopped: it is what a stop would begin.
        """
        fault_point(name)
        if name != "save_blocking":
            self.safe_point()

    def _asked(self) -> int:
        if self._last_signal:
            return self._last_signal
        if self._is_first_rank and self._file.exists():
            return 2
        return int(self._is_first_rank and self._ends is not None and time.monotonic() >= self._ends)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        self._last_signal = 3 + _SIGNALS.index(signal.Signals(number))
