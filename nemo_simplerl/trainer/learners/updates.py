"""The optimizer updates that one model makes in a step."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Mini = TypeVar("Mini")
UpdateMetrics = dict[str, float]


class UpdateLoop:
    """Runs a step's updates one by one; a step that is resumed in the middle goes on after its finished updates.

    `before_each` is called before every update that is made. What it raises ends the loop and loses no finished update.
    """

    def __init__(self, before_each: Callable[[], None] = lambda: None):
        self._before_each = before_each
        self._finished: list[UpdateMetrics] = []

    def skip_finished(self, finished: list[UpdateMetrics]) -> None:
        """Have the next `run` skip the updates whose metrics are in `finished`, and append its own there."""
        self._finished = finished

    @property
    def num_finished(self) -> int:
        """Updates that the next `run` skips."""
        return len(self._finished)

    def run(self, minis: Iterable[Mini], update: Callable[[Mini, bool], UpdateMetrics]) -> list[UpdateMetrics]:
        """Call `update(mini, is_first)` for each mini-batch. Returns the metrics of all updates of the step."""
        finished, self._finished = self._finished, []
        for index, mini in enumerate(minis):
            if index >= len(finished):
                self._before_each()
                finished.append(update(mini, index == 0))
        return finished
