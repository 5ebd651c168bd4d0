"""The completions of a rollout, spread over the ranks that sampled them, and their way to the ranks that train on them.

Of each completion every rank knows length, ending, version and seed, some 25 bytes; its tokens and its text are on the
rank that sampled it alone. Ranks that train on it get the tokens from there, 8 bytes each, in one exchange: which rank
holds a completion and which ranks want it is known to all, so that nobody asks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch.distributed as dist

from nemo_simplerl.parallel.exchange import exchange
from nemo_simplerl.rollout.completions import FINISH_REASONS, Completions, flat_of_rows, rows_of_flat


class Response(NamedTuple):
    """What a batch needs of a completion."""

    token_ids: np.ndarray  # int32
    logprobs: np.ndarray  # float32
    finish_reason: str


@dataclass(frozen=True, eq=False)
class SpreadCompletions:
    """Facts of all completions of a rollout, in order, and those completions that this rank holds.

    held: the completions whose `holders` is `rank`, in order.
    """

    lengths: np.ndarray  # int64 [N], tokens of each
    is_stopped: np.ndarray  # bool [N]; False: ended by length
    versions: np.ndarray  # int64 [N], of the weights that sampled each
    seeds: np.ndarray  # int64 [N]
    holders: np.ndarray  # int64 [N], the rank of the group that holds each
    rank: int
    held: Completions

    @classmethod
    def alone(cls, completions: Completions) -> "SpreadCompletions":
        """Completions that are all on this rank, the first of its group."""
        facts = (completions.lengths, completions.is_stopped, completions.versions, completions.seeds)
        return cls(*facts, np.zeros(len(completions), dtype=np.int64), 0, completions)

    @classmethod
    def joined(cls, parts: Iterable["SpreadCompletions"]) -> "SpreadCompletions":
        """All completions of the parts, of which there is at least one, in order."""
        listed = list(parts)
        facts = (np.concatenate([getattr(part, name) for part in listed]) for name in _FACTS)
        return cls(*facts, listed[0].rank, Completions.joined(part.held for part in listed))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def held_indices(self) -> list[int]:
        """The indices of the completions that this rank holds."""
        return np.flatnonzero(self.holders == self.rank).tolist()

    def select(self, indices: Sequence[int] | range) -> "SpreadCompletions":
        """The completions with these indices, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        position = np.cumsum(self.holders == self.rank) - 1  # of each completion among those held
        facts = {name: getattr(self, name)[index] for name in _FACTS}
        held = self.held.select(position[index[facts["holders"] == self.rank]])
        return replace(self, **facts, held=held)

    def to_owners(self, owners: Sequence[Sequence[int]], group: dist.ProcessGroup | None) -> list[Response]:
        """The completions with the indices `owners[rank]`, on each rank of the group, in that order. Collective."""
        rows = deliver(
            (self.held.token_ids, self.held.logprobs), (np.int32, np.float32), self.lengths, self.holders, owners, group
        )
        mine = owners[self.rank]
        reasons = [FINISH_REASONS[int(stopped)] for stopped in self.is_stopped[np.asarray(mine, dtype=np.int64)]]
        return [Response(*row, reason) for row, reason in zip(rows, reasons, strict=True)]


_FACTS = ("lengths", "is_stopped", "versions", "seeds", "holders")


def deliver(
    columns: Sequence[Sequence[np.ndarray]],
    dtypes: Sequence[type],
    lengths: np.ndarray,
    holders: np.ndarray,
    owners: Sequence[Sequence[int]],
    group: dist.ProcessGroup | None,
) -> list[tuple[np.ndarray, ...]]:
    """The columns' rows of the samples `owners[rank]`, on each rank of the group, in that order. Collective.

    columns: a row for each sample that this rank holds, in the order of samples; `lengths` numbers of the column's
    dtype each. holders: the rank that holds each sample. owners: the samples that each rank gets; ranks that get the
    same may share one list, which is then packed once. A rank alone needs no group. Rows are views: those that this
    rank holds itself are not copied.
    """
    rank = 0 if group is None else group.rank()
    wanted = [np.asarray(samples, dtype=np.int64) for samples in owners]
    place = np.cumsum(holders == rank) - 1  # of a sample that this rank holds, among those that it holds
    packed: dict[int, list[np.ndarray]] = {}

    def pack(owner: int) -> list[np.ndarray]:
        key = id(owners[owner])
        if key not in packed:
            places = place[_held_by(rank, wanted[owner])].tolist()
            packed[key] = [
                flat_of_rows([rows[i] for i in places], dtype) for rows, dtype in zip(columns, dtypes, strict=True)
            ]
        return packed[key]

    def _held_by(holder: int, samples: np.ndarray) -> np.ndarray:
        return samples[holders[samples] == holder]

    outgoing: dict[int, Callable[[], Sequence[np.ndarray]]] = {
        owner: partial(pack, owner)
        for owner, samples in enumerate(wanted)
        if owner != rank and (holders[samples] == rank).any()
    }
    sources = {holder: _held_by(holder, wanted[rank]) for holder in np.unique(holders[wanted[rank]]).tolist()}
    incoming = {
        holder: [(dtype, int(lengths[samples].sum())) for dtype in dtypes]
        for holder, samples in sources.items()
        if holder != rank
    }
    received = exchange(outgoing, incoming, group, "tokens") if group is not None and group.size() > 1 else {}
    rows: dict[int, tuple[np.ndarray, ...]] = {}
    for holder, samples in sources.items():
        if holder == rank:
            parts = [[column[i] for i in place[samples].tolist()] for column in columns]
        else:
            parts = [rows_of_flat(flat, lengths[samples]) for flat in received[holder]]
        rows |= zip(samples.tolist(), zip(*parts, strict=True), strict=True)
    return [rows[sample] for sample in wanted[rank].tolist()]
