"""Names of the phases and waits that the main thread is in, which a watchdog reads from another thread.

Naming a wait changes nothing else.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

OUTSIDE = "outside the phases"
_FOR_OTHERS = ("gather.", "exchange.", "refit.", "all_reduce.", "barrier.", "leave_together", "warm_start")


@dataclass(frozen=True)
class Wait:
    """One phase or wait that the thread is in."""

    name: str
    since: float  # time.monotonic() seconds


class Waits:
    """The nested waits of one thread, which enters and leaves them; any thread may read them.

    Use as a context: `with waits("reward.grade"): ...`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._open: tuple[Wait, ...] = ()
        self._changed = clock()
        self.raised_in = ""  # the waits, as `in_words`, in which the last error was raised
        self.on_leave: Callable[[Wait, float], None] | None = None  # called with each wait that ends, and when it did

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        outer = self._open
        self._changed = self._clock()
        inner = Wait(name, self._changed)
        self._open = (*outer, inner)
        try:
            yield
        except BaseException:
            if not self.raised_in.startswith(self.in_words()):  # else an inner wait has noted it
                self.raised_in = self.in_words()
            raise
        finally:
            self._open, self._changed = outer, self._clock()
            if self.on_leave is not None:
                self.on_leave(inner, self._changed)

    @property
    def open(self) -> tuple[Wait, ...]:
        """The waits that the thread is in, outermost first."""
        return self._open

    @property
    def changed(self) -> float:
        """time.monotonic() seconds at which a wait was last entered or left."""
        return self._changed

    def in_words(self) -> str:
        """The names of the open waits, outermost first: `rollout > engine.generate`."""
        return " > ".join(wait.name for wait in self._open) or OUTSIDE


def is_for_others(name: str) -> bool:
    """Whether a wait of this name ends only when other ranks have come as far: its rank does nothing meanwhile."""
    return name.startswith(_FOR_OTHERS)


waiting = Waits()  # of this process's main thread
