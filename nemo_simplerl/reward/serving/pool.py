"""A pool of reward workers that can be killed: no response, however hostile, takes longer than its deadline.

Each worker has a thread that starts it, talks to it and replaces it. A future with a timeout would not do: it
gives up waiting while the worker hangs on, and such a pool answers nothing after a few hostile responses.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from nemo_simplerl.reward.grade import SIMPLERL_REWARDS, Verdict, reward_of
from nemo_simplerl.reward.serving.cache import GradeCache, answer_key
from nemo_simplerl.reward.serving.starts import PoolClosed, Starts
from nemo_simplerl.reward.serving.worker_process import WORKER_COMMAND, WorkerDied, WorkerLate, WorkerProcess

if TYPE_CHECKING:
    from nemo_simplerl.config.schema import RewardConfig


class Sample(NamedTuple):
    """What is to be graded. `facts` are for a reward of one's own: the prompt, the question, the token ids."""

    gold: str
    response: str
    facts: Mapping[str, Any]


Item = tuple[str, str] | Sample  # gold answer, response
# How the grading ended. "parse_failed": the answer is no mathematics that the grader reads; its spelling was compared.
Status = Literal["ok", "parse_failed", "timeout", "crash"]

STARTUP_TIMEOUT_S = 60.0
_MAX_CHUNK_ITEMS = 32
_MAX_CHUNK_CHARS = 1_000_000
_CHUNKS_A_WORKER = 4  # so that one slow chunk leaves the others work to share
_CACHE_ENTRIES = 100_000  # some 30 MB
_CLOSED_EARLY = "the reward pool was closed before the grading ended"
_REPEATABLE: tuple[Status, ...] = ("ok", "parse_failed")  # the others may be the machine's doing


@dataclass(frozen=True, slots=True)
class Grade:
    """A graded item. `ms` is the time of its grading; a cached grade keeps the time it took at first.

    An item that timed out or crashed its worker is incorrect. `score` and `metrics` are of a reward of one's own, and
    `error` says why there are none.
    """

    verdict: Verdict
    status: Status
    ms: float
    score: float | None = None
    metrics: Mapping[str, float] | None = None
    error: str = ""


def score_of(grade: Grade, config: "RewardConfig | None" = None) -> float:
    """What a grade pays: the score of a reward of one's own, else what its verdict earns."""
    return reward_of(grade.verdict, config) if grade.score is None else grade.score


Observer = Callable[[Grade], Grade]


class RewardPool:
    """A pool of `num_workers` grading processes. Thread-safe, usable from asyncio; a context manager that closes it."""

    digest: str | None = None  # of the function that scores, where it is a user's

    def __init__(
        self,
        num_workers: int,
        timeout_s: float,
        memory_limit_mb: int,
        command: Sequence[str] = WORKER_COMMAND,
        cache_entries: int = _CACHE_ENTRIES,
    ) -> None:
        """Start the workers and wait until each is ready. RuntimeError where they do not start in a few tries, and
        WorkerUnusable where one says that it cannot grade.

        `timeout_s` bounds one item, not a call. `command` is what to run instead of the math grader; it gets
        two more arguments, the memory limit in MB and this process's id, and speaks the protocol of
        `reward.serving.worker`.
        """
        if num_workers < 1 or timeout_s <= 0 or memory_limit_mb < 1:
            raise ValueError(
                "a reward pool needs num_workers >= 1, timeout_s > 0 and memory_limit_mb >= 1, "
                f"got {num_workers}, {timeout_s} and {memory_limit_mb}"
            )
        self._lock = threading.Lock()
        self._closed = False
        self._cache: GradeCache[Grade] = GradeCache(cache_entries)
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._starts = Starts()
        start = partial(WorkerProcess, command, memory_limit_mb)
        self._drivers = [_Driver(self._chunks, start, self._starts, timeout_s) for _ in range(num_workers)]
        for driver in self._drivers:
            driver.start()
        try:
            for driver in self._drivers:
                driver.started.result()
        except BaseException:
            self.close()
            raise

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """The grade of each item, in order. RuntimeError where the pool is closed or a worker cannot restart.

        Items of one call with the same gold answer and the same boxed content are graded once.
        """
        work = self._submit(items)
        try:
            return self._collect(work, [chunk.grades.result() for chunk in work.chunks])
        finally:
            work.withdraw()

    async def grade_async(self, items: Sequence[Item]) -> list[Grade]:
        """The same as `grade` in an event loop. When cancelled, it withdraws the items that no worker has begun."""
        work = await asyncio.to_thread(self._submit, items)
        try:
            graded = await asyncio.gather(*(asyncio.wrap_future(chunk.grades) for chunk in work.chunks))
            return self._collect(work, graded)
        finally:
            work.withdraw()

    @property
    def broken(self) -> str | None:
        """Why no worker can be started any more; None while they can."""
        return None if self._starts.refusal is None else str(self._starts.refusal)

    def _parts(self, items: Sequence[Item]) -> list[tuple[bytes, Item]]:
        """The items as workers get them, each with the key under which its grade is known."""
        return [(answer_key(item[0], item[1]), item[:2]) for item in items]

    def _observer(self) -> Observer:
        """What every new grade of one call passes through; an error that it raises ends the call."""
        return lambda grade: grade

    def _submit(self, items: Sequence[Item]) -> "_Work":
        parts = self._parts(items)
        keys = [key for key, _ in parts]
        known = self._cache.lookup(keys)
        new = {key: item for key, item in parts if key not in known}
        most = min(_MAX_CHUNK_ITEMS, -(-len(new) // (_CHUNKS_A_WORKER * len(self._drivers))))
        observe = self._observer()
        chunks = [_Chunk(part, Future(), observe) for part in chunked(list(new.values()), most)]
        with self._lock:
            if self._closed:
                raise RuntimeError("the reward pool is closed")
            for chunk in chunks:
                self._chunks.put(chunk)
        return _Work(keys, known, list(new), chunks)

    def _collect(self, work: "_Work", graded: Sequence[list[Grade]]) -> list[Grade]:
        new = dict(zip(work.new_keys, (grade for grades in graded for grade in grades), strict=True))
        self._cache.store((key, grade) for key, grade in new.items() if grade.status in _REPEATABLE)
        grades = work.known | new
        return [grades[key] for key in work.keys]

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
    observe: Observer


@dataclass(frozen=True, slots=True)
class _Work:
    """One call of `grade`: the key of each item, cached grades by key, and chunks with the items of `new_keys`."""

    keys: list[bytes]
    known: dict[bytes, Grade]
    new_keys: list[bytes]
    chunks: list[_Chunk]

    def withdraw(self) -> None:
        """Leave the chunks that no worker has begun."""
        for chunk in self.chunks:
            chunk.grades.cancel()


def chunked(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    """Split items into consecutive parts of at most `most` items and a million characters: one round trip each."""
    start = chars = 0
    for end, item in enumerate(items):
        size = len(item[0]) + len(item[1])
        if end > start and (end - start == most or chars + size > _MAX_CHUNK_CHARS):
            yield items[start:end]
            start, chars = end, 0
        chars += size
    if start < len(items):
        yield items[start:]


class _Driver(threading.Thread):
    """The thread that drives one worker. It lives as long as the pool, and Linux kills the worker when it ends."""

    def __init__(
        self,
        chunks: "queue.SimpleQueue[_Chunk | None]",
        start_worker: Callable[[], WorkerProcess],
        starts: Starts,
        timeout_s: float,
    ) -> None:
        super().__init__(name="reward-worker-driver", daemon=True)
        self.started: Future[None] = Future()
        self._chunks = chunks
        self._start_worker = start_worker
        self._starts = starts
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # between a new worker and stop()
        self._stopped = threading.Event()
        self._worker: WorkerProcess | None = None

    def run(self) -> None:
        try:
            self._live_worker()
            self.started.set_result(None)
        except Exception as error:  # raised in the constructor of the pool
            self.started.set_exception(error)
        while (chunk := self._chunks.get()) is not None:
            if not chunk.grades.set_running_or_notify_cancel():
                continue
            try:
                chunk.grades.set_result(self._grade(chunk))
            except Exception as error:  # raised in the call that asked for the grades
                chunk.grades.set_exception(error)
        self._discard_worker()

    def stop(self) -> None:
        """Kill the worker now and start no other. Called from another thread."""
        with self._lock:
            self._stopped.set()
            if self._worker is not None:
                self._worker.terminate()

    def worker_pid(self) -> int | None:
        worker = self._worker
        return worker.pid if worker is not None and worker.is_alive() else None

    def _grade(self, chunk: _Chunk) -> list[Grade]:
        items, grades = chunk.items, list[Grade]()
        while len(grades) < len(items):
            worker = self._live_worker()
            start = time.monotonic()
            try:
                worker.send(items[len(grades) :], start + self._timeout_s)
                while len(grades) < len(items):
                    grades.append(chunk.observe(_read_grade(worker.receive(start + self._timeout_s))))
                    start = time.monotonic()
            except (WorkerLate, WorkerDied) as error:
                if self._stopped.is_set():
                    raise RuntimeError(_CLOSED_EARLY) from error
                self._discard_worker()
                ms = 1000.0 * (time.monotonic() - start)
                status: Status = "timeout" if isinstance(error, WorkerLate) else "crash"
                grades.append(chunk.observe(Grade("incorrect", status, ms, error=str(error))))
            except BaseException:  # the worker's other answers belong to no later chunk
                self._discard_worker()
                raise
        return grades

    def _live_worker(self) -> WorkerProcess:
        """The worker, or a new one where it has ended: a worker that was killed while idle costs no item its grade."""
        if self._worker is not None and self._worker.is_alive() and not self._stopped.is_set():
            return self._worker
        self._discard_worker()
        return self._starts.until_one_succeeds(self._new_worker, self._stopped.wait)

    def _new_worker(self) -> WorkerProcess:
        with self._lock:
            if self._stopped.is_set():
                raise PoolClosed(_CLOSED_EARLY)
            worker = self._worker = self._start_worker()
        try:
            worker.wait_ready(STARTUP_TIMEOUT_S)
        except BaseException:
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
    error = answer.get("error", "")
    status: Status = "crash" if error else "ok" if answer.get("parsed", True) else "parse_failed"
    return Grade(
        cast(Verdict, answer["verdict"]),
        status,
        float(answer.get("ms", 0.0)),
        answer.get("score"),
        answer.get("metrics"),
        error,
    )
