"""When the phases of a step begin and end, where each waits for what it needs and for the ranks that it works on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nemo_simplerl.plan.seconds import NONE, Seconds


@dataclass(frozen=True)
class Task:
    """A phase of a step, on the ranks of one role or of several."""

    name: str
    roles: tuple[str, ...]
    ranks: tuple[range, ...]  # each the ranks of a role; those of two are the same, or have none in common
    seconds: Seconds
    after: Mapping[str, Seconds]  # the phases whose results it needs, and how long these are on their way


@dataclass(frozen=True)
class Span:
    """When a phase begins and ends, in seconds from the step's beginning, and the phase that it waited for last."""

    begin: Seconds
    end: Seconds
    waits_for: str | None  # None: it begins with the step


def spans(tasks: Sequence[Task]) -> dict[str, Span]:
    """The time line of a step: each phase begins when what it needs is there and its ranks are free.

    tasks: in the order in which the trainer's page has them, which every rank keeps.
    """
    low, middle, high = (_spans(tasks, end) for end in (_low, _middle, _high))
    return {
        name: Span(Seconds(low[name][0], high[name][0]), Seconds(low[name][1], high[name][1]), blocker)
        for name, (_, _, blocker) in middle.items()
    }


def length(found: Mapping[str, Span]) -> Seconds:
    """How long a step takes: until the last of its phases ends, when all ranks meet."""
    ends = [span.end for span in found.values()]
    return Seconds(max(end.low for end in ends), max(end.high for end in ends)) if ends else NONE


def longest_chain(found: Mapping[str, Span]) -> list[str]:
    """The phases that the length of a step is made of: the one that ends last, what it waited for, and so on."""
    name: str | None = max(found, key=lambda one: found[one].end.middle)
    chain: list[str] = []
    while name is not None:
        chain.insert(0, name)
        name = found[name].waits_for
    return chain


def _spans(tasks: Sequence[Task], of: Callable[[Seconds], float]) -> dict[str, tuple[float, float, str | None]]:
    """Begin and end of each task, and what it waited for."""
    found: dict[str, tuple[float, float, str | None]] = {}
    last: dict[range, str] = {}  # the task that these ranks did last
    for task in tasks:
        needs = {name: found[name][1] + of(way) for name, way in task.after.items()}
        for before in (last[ranks] for ranks in task.ranks if ranks in last):
            needs[before] = max(found[before][1], needs.get(before, 0.0))
        blocker = max(needs, key=lambda name: needs[name], default=None)
        begin = 0.0 if blocker is None else needs[blocker]
        found[task.name] = (begin, begin + of(task.seconds), blocker)
        last |= dict.fromkeys(task.ranks, task.name)
    return found


def _low(found: Seconds) -> float:
    return found.low


def _middle(found: Seconds) -> float:
    return found.middle


def _high(found: Seconds) -> float:
    return found.high
