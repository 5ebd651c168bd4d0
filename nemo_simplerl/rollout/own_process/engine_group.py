"""The ranks that one engine with a process of its own serves: the first talks to it, and all hear how that ended."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TypeVar, cast

import torch.distributed as dist

from nemo_simplerl.parallel.reductions import gather_objects

T = TypeVar("T")

_LEAST_TIMEOUT_S = 1800.0  # torch's own, which is long enough for what is not the engine's: a rank's export of a bucket
_MARGIN_S = 60.0  # for the leader to end an engine that did not answer in time, and say so


def consecutive_ranks(size: int, timeout_s: float = 0.0, *, ranks: range | None = None) -> dist.ProcessGroup | None:
    """This rank's gloo group of `size` consecutive ranks of an engine, None where that is this rank alone or where this
    rank has no engine. Collective over the world, also on ranks without an engine: torch names groups by counting.

    timeout_s: seconds that the engine may take for one call, in which the other ranks wait for the first. ranks: those
    with engines, a multiple of `size`; None is the world's.
    """
    if size == 1:
        return None
    ranks = range(dist.get_world_size()) if ranks is None else ranks
    assert len(ranks) % size == 0, "config.rules refuses engines that do not divide their ranks"
    mine, wait = None, timedelta(seconds=max(timeout_s, _LEAST_TIMEOUT_S) + _MARGIN_S)
    for first in ranks[::size]:
        of_one = range(first, first + size)
        group = dist.new_group(list(of_one), timeout=wait, backend="gloo")
        mine = group if dist.get_rank() in of_one else mine
    return mine


class EngineGroup:
    """The ranks of one engine. group: of gloo; None is this rank alone."""

    def __init__(self, group: dist.ProcessGroup | None):
        self._group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()
        self.leads = self.rank == 0

    def together(self, act: Callable[[], T]) -> list[T]:
        """The results of every rank's `act()`, in rank order, on every rank of the group. Collective.

        Raises on every rank when one fails: its own error in a group of one rank, else RuntimeError.
        """
        answer: T | None = None
        error: Exception | None = None
        try:
            answer = act()
        except Exception as caught:  # raised below on every rank: the others would wait for this one without end
            error = caught
        if error is not None and self.size == 1:
            raise error
        answers = gather_objects((answer, None if error is None else f"{type(error).__name__}: {error}"), self._group)
        if failures := [f"rank {rank} of the engine's group: {text}" for rank, (_, text) in enumerate(answers) if text]:
            raise RuntimeError("; ".join(failures)) from error
        return cast(list[T], [value for value, _ in answers])

    def lead(self, act: Callable[[], T]) -> T:
        """The result of the first rank's `act()`, or its error, on every rank of the group. Collective."""
        return self.together(lambda: act() if self.leads else None)[0]  # type: ignore[return-value]

    def in_step(self, items: Iterable[T]) -> Iterator[T]:
        """The items, one at a time once every rank has its own next one. Collective.

        Raises RuntimeError on every rank when making an item fails on one, as `together` does, or when the ranks' items
        are not equally many.
        """
        source, held = iter(items), list[T]()

        def advance() -> bool:
            held.extend(islice(source, 1))
            return bool(held)

        while all(are_there := self.together(advance)):
            yield held.pop()  # kept by whoever takes it alone: the sender reuses its memory
        if any(are_there):
            raise RuntimeError(f"the ranks of the engine's group were sent unequally many buckets: {are_there}")
