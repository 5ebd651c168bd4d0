"""How often a pool tries to start a worker that does not start, and what it says then."""

import threading
from collections.abc import Callable
from typing import TypeVar

from nemo_simplerl.reward.serving.worker_process import WorkerUnusable

T = TypeVar("T")
_MOST_FAILURES = 3  # in a row, over all workers of a pool: it is the machine's or the installation's doing
_PAUSE_S = 0.2


class PoolClosed(RuntimeError):
    """The pool is being closed, which is no worker's failure."""


class Starts:
    """Starts of a pool's workers. Thread-safe.

    Once three have failed in a row, or one that says why another would fail too, none is tried any more.
    """

    def __init__(self) -> None:
        self.refusal: RuntimeError | None = None  # why none is tried any more
        self._failures = 0
        self._lock = threading.Lock()

    def until_one_succeeds(self, start: Callable[[], T], wait: Callable[[float], object]) -> T:
        """What `start` returns, called until it raises nothing, with pauses in `wait`. RuntimeError with the reason
        where none is tried any more: WorkerUnusable where a worker gave it.
        """
        while self.refusal is None:
            try:
                worker = start()
            except PoolClosed:
                raise
            except WorkerUnusable as error:
                self.refusal = error
            except (OSError, RuntimeError) as error:
                self._count(error)
                wait(_PAUSE_S)
            else:
                self._failures = 0
                return worker
        raise type(self.refusal)(str(self.refusal))  # of its own: several threads raise it

    def _count(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= _MOST_FAILURES:
                told = f"reward workers did not start {self._failures} times in a row. The last: {error}"
                self.refusal = RuntimeError(told)
