"""Stopping a run so that it can be resumed: what requests a stop, and how all ranks agree where to stop.

A stop is requested by SIGTERM, SIGUSR1, SIGINT, the file RUN_DIR/stop, or the end of trainer.max_time. The ranks check
at safe points: before a phase and before an update. A second signal also breaks off the current rollout, at its next
work batch; an engine without a batch size (TensorRT-LLM) finishes it.

torchrun catches SIGTERM and SIGINT itself, passes them to its ranks, and kills ranks that have not ended after 30 s
(newer versions wait for TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds). SIGUSR1 ends torchrun and leaves the ranks running:
send it to the ranks, or write the file.
"""

import json
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from nemo_simplerl.durations import seconds_of
from nemo_simplerl.files import Unessential, atomic_write
from nemo_simplerl.trainer.guard.faults import fault_point

STOP_FILE = "stop"  # in the run directory, as all of these
STOPPED_FILE = "stopped.json"
_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)


class Stopping(Exception):
    """Raised where all ranks have agreed to stop; its message is the reason."""


class Stop:
    """Requests to stop this run. As a context, entered on the main thread, it also receives signals.

    started: time.monotonic() when the process began, from which `max_time` (DD:HH:MM:SS) counts.
    """

    def __init__(self, run_dir: Path, *, is_first_rank: bool, max_time: str | None, started: float):
        self._file, self._is_first_rank = run_dir / STOP_FILE, is_first_rank
        self._ends = None if max_time is None else started + seconds_of(max_time)
        self._num_signals = 0
        self._last_signal = 0
        # Indices into this list are compared over the ranks, and the largest is the reason that all give.
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

    def delete_files(self) -> None:
        """Remove RUN_DIR/stop, and stopped.json of an earlier stop. On rank 0."""
        for path in (self._file, self._file.with_name(STOPPED_FILE)):
            path.unlink(missing_ok=True)

    @property
    def is_urgent(self) -> bool:
        """Whether this rank received a second signal."""
        return self._num_signals > 1

    def safe_point(self, group: dist.ProcessGroup | None = None) -> None:
        """Raise Stopping on every rank of the group where any of them was asked to stop. Collective.

        group: the ranks of the role at work, so that its work waits for no other role; None is the world.
        """
        reason = torch.tensor(self._reason())
        dist.all_reduce(reason, op=dist.ReduceOp.MAX, group=group)
        if reason:
            raise Stopping(self._reasons[int(reason)])

    def on_phase(self, name: str, group: dist.ProcessGroup | None = None) -> None:
        """A fault point and then a safe point: call it at the beginning of a phase and before an update. Collective.

        group: as in `safe_point`. A save, once begun, is not stopped: it is what a stop would begin.
        """
        fault_point(name)
        if name != "save_blocking":
            self.safe_point(group)

    def on_phase_of_role(self, name: str, group: dist.ProcessGroup | None = None) -> None:
        """The same where other roles are at work on other ranks: safe is what stands before an update. Other ranks hear
        of the stop when all meet. Collective over the group, in updates alone."""
        fault_point(name)
        if group is not None and name.endswith(".update"):
            self.safe_point(group)

    def _reason(self) -> int:
        """The index of this rank's reason to stop; 0 is none."""
        if self._last_signal:
            return self._last_signal
        if self._is_first_rank and self._file.exists():
            return 2
        return int(self._is_first_rank and self._ends is not None and time.monotonic() >= self._ends)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        self._last_signal = 3 + _SIGNALS.index(signal.Signals(number))


def write_stopped(run_dir: Path, *, step: int, updates_in_step: int, reason: str) -> None:
    """Write RUN_DIR/stopped.json: after which step, after how many updates of it, and why. On rank 0."""
    facts = {"step": step, "updates_in_step": updates_in_step, "reason": reason}
    with Unessential().write(STOPPED_FILE, run_dir):
        atomic_write(run_dir / STOPPED_FILE, json.dumps(facts) + "\n")
