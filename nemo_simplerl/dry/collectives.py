"""The collectives of one rank in their order, and the comparison of ranks. Imports no torch: `execute` compares."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SEND, RECEIVE = "send", "receive"


class Collective(NamedTuple):
    """One call. `ranks` are those of its group; of a send or a receive, from whom to whom."""

    phase: str
    operation: str
    ranks: tuple[int, ...]
    dtype: str  # "object" where Python objects travel
    elements: int
    bytes: int
    device: str
    caller: str  # file:line, or Transformer Engine's layer

    @property
    def signature(self) -> tuple[str, str, int, str]:
        """What the ranks of a group must agree on."""
        return self.operation, self.dtype, self.elements, self.device


@dataclass(frozen=True)
class Traffic:
    """Calls of one kind in a phase."""

    phase: str
    operation: str
    group_size: int
    device: str
    caller: str
    calls: int
    bytes: int


def traffic(calls: Iterable[Collective]) -> list[Traffic]:
    """The calls summed by phase, operation, size of the group and caller; in each phase the most bytes first."""
    counts: Counter[tuple[str, str, int, str, str]] = Counter()
    sizes: Counter[tuple[str, str, int, str, str]] = Counter()
    phases: dict[str, int] = {}
    for call in calls:
        key = (call.phase, call.operation, len(call.ranks), call.device, call.caller)
        counts[key] += 1
        sizes[key] += call.bytes
        phases.setdefault(call.phase, len(phases))
    found = [Traffic(*key, calls=count, bytes=sizes[key]) for key, count in counts.items()]
    return sorted(found, key=lambda one: (phases[one.phase], -one.bytes))


def differences(by_rank: Mapping[int, Sequence[Collective]]) -> list[str]:
    """Where ranks of a group do not call the same collectives in the same order, one line a group; each would hang."""
    groups: dict[tuple[tuple[int, ...], bool], dict[int, list[Collective]]] = defaultdict(lambda: defaultdict(list))
    for rank, calls in by_rank.items():
        for call in calls:
            groups[call.ranks, call.operation in (SEND, RECEIVE)][rank].append(call)
    found = []
    for (ranks, _), seen in sorted(groups.items()):
        members = [rank for rank in ranks if rank in by_rank]
        lists = {rank: seen.get(rank, []) for rank in members}
        if len(members) > 1 and (problem := _first_difference(lists)):
            found.append(f"group {_few(ranks)}: {problem}")
    return found


def on_the_host(calls: Iterable[Collective]) -> list[str]:
    """Tensors that travel over host memory although they could over the GPUs' network, one line a caller."""
    found = Counter(
        (call.phase, call.operation, call.dtype, call.caller)
        for call in calls
        if call.device == "cpu" and call.dtype != "object"
    )
    return [
        f"{phase}: {operation} of a {dtype} tensor in host memory, by {caller}, {count} times"
        for (phase, operation, dtype, caller), count in found.items()
    ]


def _first_difference(lists: Mapping[int, Sequence[Collective]]) -> str | None:
    first, *others = lists
    for other in others:
        mine, theirs = ([_matched(call) for call in lists[rank]] for rank in (first, other))
        for index, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if a != b:
                left, right = lists[first][index], lists[other][index]
                return f"call {index + 1} is {_in_words(left)} on rank {first}, {_in_words(right)} on rank {other}"
        if len(mine) != len(theirs):
            return f"rank {first} makes {len(mine)} calls, rank {other} {len(theirs)}"
    return None


def _matched(call: Collective) -> tuple[str, str, int, str]:
    """The signature, in which a send is the receive that answers it."""
    operation, *rest = call.signature
    return ("point to point" if operation in (SEND, RECEIVE) else operation, *rest)  # type: ignore[return-value]


def _in_words(call: Collective) -> str:
    return f"{call.operation} of {call.elements} {call.dtype} on {call.device} ({call.caller})"


def _few(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"of {len(ranks)} ranks from {ranks[0]}"
