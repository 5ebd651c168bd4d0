"""What the main thread is busy with or waits for, by name, for whoever watches it from another thread.

It only tells: nothing behaves otherwise for being named.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

OUTSIDE = "outside the phases"


@dataclass(frozen=True)
class Wait:
    name: str
    since: float  # time.monotonic() seconds


class Waits:
    """Names inside names, innermost last. One thread enters and leaves, any may look."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._open: tuple[Wait, ...] = ()
        self._changed = clock()
        self.raised_in = ""  # in words, where the last error came up

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        outer = self._open
        self._changed = self._clock()
        self._open = (*outer, Wait(name, self._changed))
        try:
            yield
        except BaseException:
            if not self.raised_in.startswith(self.in_words()):  # else it came up further in
                self.raised_in = self.in_words()
            raise
        finally:
            self._open, self._changed = outer, self._clock()

    @property
    def open(self) -> tuple[Wait, ...]:
        """Outermost first."""
        return self._open

    @property
    def changed(self) -> float:
        """When a name was last entered or left."""
        return self._changed

    def in_words(self) -> str:
        """`rollout > engine.generate`."""
        return " > ".join(wait.name for wait in self._open) or OUTSIDE


waiting = Waits()  # of this process; `with waiting("reward.grade"): ...`
