"""The updates of one model in the step in hand."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Mini = TypeVar("Mini")
Metrics = dict[str, float]


class UpdateSeries:
    """Runs a step's updates one by one; a step that is taken up again goes on behind those it has made.

    `before_each` is called before every update that is made; what it raises leaves the series as it is.
    """

    def __init__(self, before_each: Callable[[], None] = lambda: None):
        self._before_each = before_each
        self._begun: list[Metrics] = []

    def begin_with(self, made: list[Metrics]) -> None:
        """The next `over` starts with these updates, which need not be repeated, and adds its own to the list."""
        self._begun = made

    def over(self, minis: Iterable[Mini], update: Callable[[Mini, bool], Metrics]) -> list[Metrics]:
        """The metrics of every update, those made before included. `update` is told whether it is the step's first."""
        made, self._begun = self._begun, []
        for index, mini in enumerate(minis):
            if index >= len(made):
                self._before_each()
                made.append(update(mini, index == 0))
        return made
