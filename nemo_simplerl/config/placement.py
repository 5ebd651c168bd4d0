"""The ranks that each role of a run lives on: the section `placement`, and what it comes to in a world of ranks."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LEARNERS = ("actor", "critic")
ROLES = (*LEARNERS, "engine")
_FORM = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """The ranks of each role, as `0-3` or `4`; null: those that no other role names, all where none is named.

    Roles have the same ranks and take turns, or none in common and work at the same time. The actor's begin at 0.
    """

    actor: str | int | None  # policy and reference
    critic: str | int | None  # read only where algo.advantage is gae
    engine: str | int | None  # the rollout engines, and the graders of what they sample


@dataclass(frozen=True)
class Places:
    """The ranks of each role in a world."""

    actor: range
    critic: range
    engine: range

    def of(self, role: str) -> range:
        return getattr(self, role)

    def roles_of(self, rank: int) -> tuple[str, ...]:
        """The roles that live on this rank."""
        return tuple(role for role in ROLES if rank in self.of(role))

    @property
    def is_shared(self) -> bool:
        """Whether all roles live on the same ranks."""
        return self.actor == self.critic == self.engine

    @property
    def is_engine_apart(self) -> bool:
        """Whether the engines have ranks of their own: the actor's weights travel there, and no model needs memory."""
        return self.engine != self.actor

    def sharing(self, roles: Iterable[str] = ROLES) -> dict[range, tuple[str, ...]]:
        """The roles that live on the same ranks, by these ranks; lowest first."""
        found: dict[range, tuple[str, ...]] = {}
        for role in roles:
            found[self.of(role)] = (*found.get(self.of(role), ()), role)
        return dict(sorted(found.items(), key=lambda item: item[0].start))


def places_of(placement: PlacementConfig, world_size: int, *, has_critic: bool) -> Places:
    """The ranks of each role in a world of this size. Raises ValueError with everything that is wrong.

    Without a critic, its ranks are the actor's.
    """
    roles = ROLES if has_critic else ("actor", "engine")
    problems, named = [], {}
    for role in roles:
        if (value := getattr(placement, role)) is not None:
            match = _FORM.fullmatch(str(value))
            ranks = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
            if ranks:
                named[role] = ranks
            else:
                problems.append(f"placement.{role}={value} names no ranks. Accepted: 0-3 for the ranks 0 to 3, or 4.")
    if not problems:
        taken = {rank for ranks in named.values() for rank in ranks}
        left = [rank for rank in range(world_size) if rank not in taken]
        rest = range(left[0], left[-1] + 1) if left else range(0)
        found = {role: named.get(role, rest) for role in roles}
        problems = list(_problems(found, named, left, world_size))
    if problems:
        raise ValueError("\n".join(problems))
    return Places(found["actor"], found.get("critic", found["actor"]), found["engine"])


def nodes_of(ranks: range, ranks_per_node: int) -> list[int]:
    """The nodes that these ranks are on. Ranks are numbered node by node."""
    return list(range(ranks[0] // ranks_per_node, ranks[-1] // ranks_per_node + 1))


def in_words(places: Places, roles: Iterable[str], ranks_per_node: int | None = None) -> str:
    """Where these roles live, as `actor on ranks 0-7 (node 0), engine on ranks 8-15 (node 1)`; the nodes where it is
    known how many ranks each has."""
    words = []
    for role in roles:
        ranks, where = places.of(role), ""
        if ranks_per_node is not None:
            *first, last = nodes_of(ranks, ranks_per_node)
            where = f" (nodes {first[0]} to {last})" if first else f" (node {last})"
        words.append(f"{role} on ranks {written(ranks)}{where}")
    return ", ".join(words)


def _problems(found: dict[str, range], named: dict[str, range], left: list[int], world_size: int) -> Iterator[str]:
    for role, ranks in named.items():
        if ranks[-1] >= world_size:
            yield (
                f"placement.{role}={written(ranks)} goes beyond the ranks of the run, 0 to {world_size - 1}. Start "
                f"{ranks[-1] + 1} ranks, or place it on fewer."
            )
    unnamed = [role for role in found if role not in named]
    if unnamed and left != list(found[unnamed[0]]):
        yield f"the ranks that no role of placement names, {left}, do not follow each other. Place every role by name."
    for role in unnamed if not left else ():
        yield f"placement.{role}=null: the other roles leave it none of the {world_size} ranks. Name its ranks."
    if left and not unnamed:
        yield f"no role of placement lives on the ranks {left}. Start fewer ranks, or give them to a role."
    placed = {role: ranks for role, ranks in found.items() if ranks}
    for role, ranks in placed.items():
        for other, others in list(placed.items())[list(placed).index(role) + 1 :]:
            if ranks != others and set(ranks) & set(others):
                yield (
                    f"{role} on ranks {written(ranks)} and {other} on {written(others)} share some ranks, not all. "
                    "Give both the same ranks, or none in common."
                )
    if placed.get("critic") == placed.get("engine") != placed.get("actor") and "critic" in placed:
        yield (
            f"critic and engine both live on ranks {written(placed['critic'])}, apart from the actor. Give one of "
            "them ranks of its own, or the actor's."
        )
    if placed.get("actor", range(1)).start:
        yield f"placement.actor={written(placed['actor'])} does not begin at rank 0, which writes the run's log."


def written(ranks: range) -> str:
    """The ranks as a key of `placement` names them."""
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
