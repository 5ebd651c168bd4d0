"""A pool of reward workers that can be killed: no response, however hostile, takes longer than its deadline.

Each worker has a thread that starts it, talks to it and replaces it. A future with a timeout would not do: it
gives up waiting while the worker hangs on, and such a pool answers nothing after a few hostile responses.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, cast

from nemo_simplerl.reward.grade import SIMPLERL_REWARDS, Verdict
from nemo_simplerl.reward.worker_process import WORKER_COMMAND, WorkerDied, WorkerLate, WorkerProcess

Item = tuple[str, str]  # gold answer, response
Status = Literal["ok", "timeout", "crash"]

STARTUP_TIMEOUT_S = 60.0
_MAX_CHUNK_ITEMS = 32
_MAX_CHUNK_CHARS = 1_000_000
_CHUNKS_A_WORKER = 4  # so that one slow chunk leaves the others work to share


@dataclass(frozen=True, slots=True)
class Grade:
    """`ms` is the time the grading took. An item that timed out or crashed its worker is incorrect."""

    verdict: Verdict
    status: Status
    ms: float


class RewardPool:
    """`num_workers` processes that grade. Usable from several threads, and as a context manager."""

    def __init__(
        self,
        num_workers: int,
        timeout_s: float,
        memory_limit_mb: int,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """Start the workers and wait until each is ready. RuntimeError where one does not start.

        `timeout_s` bounds one item, not a call. `command` is what to run instead of the math grader; it gets
        two more arguments, the memory limit in MB and this process's id, and speaks as `reward.worker` does.
        """
        if num_workers < 1 or timeout_s <= 0 or memory_limit_mb < 1:
            raise ValueError(
                "a reward pool needs num_workers >= 1, timeout_s > 0 and memory_limit_mb >= 1, "
                f"got {num_workers}, {timeout_s} and {memory_limit_mb}"
            )
        self._lock = threading.Lock()
        self._closed = False
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._drivers = [_Driver(self._chunks, timeout_s, memory_limit_mb, command) for _ in range(num_workers)]
        for driver in self._drivers:
            driver.start()
        try:
            for driver in self._drivers:
                driver.started.result()
        except BaseException:
            self.close()
            raise

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """One grade an item, in order. RuntimeError where the pool is closed or a worker cannot restart."""
        chunks = [_Chunk(part, Future()) for part in _split(items, len(self._drivers))]
        with self._lock:
            if self._closed:
                raise RuntimeError("the reward pool is closed")
            for chunk in chunks:
                self._chunks.put(chunk)
        return [grade for chunk in chunks for grade in chunk.grades.result()]

    def worker_pids(self) -> list[int]:
        """Process ids of the live workers, for monitoring."""
        return [pid for driver in self._drivers if (pid := driver.worker_pid()) is not None]

    def close(self) -> None:
        """Kill the workers. A call of `grade` that still waits gets a RuntimeError. Safe to repeat."""
        with self._lock:
            first, self._closed = not self._closed, True
        if not first:
            return
        for driver in self._drivers:
            driver.stop()
        for _ in self._drivers:
            self._chunks.put(None)
        for driver in self._drivers:
            driver.join()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Chunk:
    items: Sequence[Item]
    grades: "Future[list[Grade]]"


def _split(items: Sequence[Item], num_workers: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of the items. A part is one round trip, bounded in items and in characters."""
    most = min(_MAX_CHUNK_ITEMS, -(-len(items) // (_CHUNKS_A_WORKER * num_workers)))
    start = chars = 0
    for end, (gold, response) in enumerate(items):
        size = len(gold) + len(response)
        if end > start and (end - start == most or chars + size > _MAX_CHUNK_CHARS):
            yield items[start:end]
            start, chars = end, 0
        chars += size
    if start < len(items):
        yield items[start:]


class _Driver(threading.Thread):
    """The thread of one worker. It lives as long as the pool, and the system kills the worker with it."""

    def __init__(
        self,
        chunks: "queue.SimpleQueue[_Chunk | None]",
        timeout_s: float,
        memory_limit_mb: int,
        command: Sequence[str],
    ) -> None:
        super().__init__(name="reward-worker-driver", daemon=True)
        self.started: Future[None] = Future()
        self._chunks = chunks
        self._timeout_s = timeout_s
        self._memory_limit_mb = memory_limit_mb
        self._command = command
        self._lock = threading.Lock()  # between a new worker and stop()
        self._stopped = False
        self._worker: WorkerProcess | None = None

    def run(self) -> None:
        try:
            self._live_worker()
            self.started.set_result(None)
        except Exception as error:  # handed to whoever made the pool
            self.started.set_exception(error)
        while (chunk := self._chunks.get()) is not None:
            try:
                chunk.grades.set_result(self._grade(chunk.items))
            except Exception as error:  # handed to whoever asked for the grades
                chunk.grades.set_exception(error)
        self._discard_worker()

    def stop(self) -> None:
        """Called from another thread: kill the worker now and start no other."""
        with self._lock:
            self._stopped = True
            if self._worker is not None:
                self._worker.terminate()

    def worker_pid(self) -> int | None:
        worker = self._worker
        return worker.pid if worker is not None else None

    def _grade(self, items: Sequence[Item]) -> list[Grade]:
        grades: list[Grade] = []
        while len(grades) < len(items):
            worker = self._live_worker()
            start = time.monotonic()
            try:
                worker.send(items[len(grades) :], start + self._timeout_s)
                while len(grades) < len(items):
                    grades.append(_read_grade(worker.receive(start + self._timeout_s)))
                    start = time.monotonic()
            except (WorkerLate, WorkerDied) as error:
                status: Status = "timeout" if isinstance(error, WorkerLate) else "crash"
                grades.append(Grade("incorrect", status, 1000.0 * (time.monotonic() - start)))
                self._discard_worker()
        return grades

    def _live_worker(self) -> WorkerProcess:
        """The worker, or a new one where it has ended: a worker killed while idle costs no item its grade."""
        if self._worker is not None and self._worker.is_alive() and not self._stopped:
            return self._worker
        self._discard_worker()
        with self._lock:
            if self._stopped:
                raise RuntimeError("the reward pool was closed before the grading ended")
            worker = self._worker = WorkerProcess(self._command, self._memory_limit_mb)
        try:
            worker.wait_ready(STARTUP_TIMEOUT_S)
        except RuntimeError:
            self._discard_worker()
            raise
        return worker

    def _discard_worker(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.discard()


def _read_grade(answer: object) -> Grade:
    """The grade in a worker's answer. WorkerDied where it is not one."""
    if not isinstance(answer, dict) or answer.get("verdict") not in SIMPLERL_REWARDS:
        raise WorkerDied(f"it answered {answer!r:.100}")
    return Grade(cast(Verdict, answer["verdict"]), "ok", float(answer.get("ms", 0.0)))
