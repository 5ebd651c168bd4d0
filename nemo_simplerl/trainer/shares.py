"""The way of samples between the data ranks of two models.

Where actor and critic have parallel layouts of their own, each has data ranks of its own on the same ranks. What
belongs to a sample goes straight from a rank that holds it for the one model to those that hold it for the other: which
these are is a function of seed, step and lengths, so that nobody asks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nemo_simplerl.data.batch import Batch
from nemo_simplerl.parallel.exchange import exchange
from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.parallel.mesh import Mesh

Rows = dict[int, list[np.ndarray]]  # the arrays that belong to a sample, by its index among those of the step
_FIELDS = [field.name for field in fields(Batch)]


@dataclass(frozen=True)
class Route:
    """What one rank passes on to others, and where it gets from what it wants: samples by rank of the world."""

    sends: dict[int, list[int]]
    receives: dict[int, list[int]]  # from itself too, what it has already


def route_of(
    rank: int, source: Grid, held: Sequence[Sequence[int]], target: Grid, wanted: Sequence[Sequence[int]]
) -> Route:
    """The way of `rank` for samples that data rank i of `source` holds as held[i], and of `target` wants as wanted[i].

    A rank that holds what it wants keeps it. The ranks of a replica, which hold the same, take turns in sending.
    """
    replicas = source.model
    holders = {sample: replicas[index] for index, samples in enumerate(held) for sample in samples}

    def sender(sample: int, receiver: int) -> int:
        ranks = holders[sample]
        return receiver if receiver in ranks else ranks[receiver % len(ranks)]

    sends: dict[int, list[int]] = {}
    receives: dict[int, list[int]] = {}
    for receiver in target.ranks:
        for sample in wanted[target.dp_rank(receiver)]:
            of = sender(sample, receiver)
            if receiver == rank:
                receives.setdefault(of, []).append(sample)
            elif of == rank:
                sends.setdefault(receiver, []).append(sample)
    return Route(sends, receives)


class Travel:
    """Takes batches and columns from the data ranks of one model to those of another on the same ranks, and back.

    share_of_home, share_of_away: `(lengths, step, rank=, num_ranks=)`, the samples of a data rank of either model.
    Nothing moves where both models have the same layout.
    """

    def __init__(self, home: Mesh, away: Mesh, share_of_home: Callable, share_of_away: Callable):
        self._home, self._away = home, away
        self._share_of_home, self._share_of_away = share_of_home, share_of_away
        self._is_same = home.grid == away.grid
        self._lengths: Sequence[int] = ()
        self._at_home: list[int] = []  # samples of this rank, in the order of its batch for either model
        self._at_away: list[int] = []
        self._there = self._back = Route({}, {})

    def begin(self, lengths: Sequence[int], step: int) -> None:
        """Say which step the batches are of; `lengths`: the response tokens of every sample of it."""
        if self._is_same:
            return
        home, away = (
            [share(lengths, step, rank=rank, num_ranks=grid.dp_size) for rank in range(grid.dp_size)]
            for grid, share in ((self._home.grid, self._share_of_home), (self._away.grid, self._share_of_away))
        )
        self._lengths = lengths
        self._at_home, self._at_away = home[self._home.dp_rank], away[self._away.dp_rank]
        self._there = route_of(self._home.rank, self._home.grid, home, self._away.grid, away)
        self._back = route_of(self._home.rank, self._away.grid, away, self._home.grid, home)

    def batch(self, batch: Batch) -> Batch:
        """The other model's batch of the step, from this one's. Collective over both models, as all that follows."""
        if self._is_same:
            return batch
        columns = {name: getattr(batch, name).cpu().numpy().reshape(len(batch), -1) for name in _FIELDS}
        lengths = columns["lengths_B"][:, 0]
        found = self._moved(
            self._there,
            {sample: [lengths[row : row + 1]] for row, sample in enumerate(self._at_home)},
            lambda sample: [(np.int64, 1)],
        )
        totals = {sample: int(length[0]) for sample, (length,) in found.items()}
        rows = self._moved(
            self._there,
            {
                sample: [column[row, : _width(name, lengths[row])] for name, column in columns.items()]
                for row, sample in enumerate(self._at_home)
            },
            lambda sample: [(column.dtype.type, _width(name, totals[sample])) for name, column in columns.items()],
        )
        widest = max(totals.values())
        made = {}
        for place, (name, column) in enumerate(columns.items()):
            padded = np.zeros((len(self._at_away), _width(name, widest)), column.dtype)
            for row, sample in enumerate(self._at_away):
                padded[row, : len(rows[sample][place])] = rows[sample][place]
            shaped = padded[:, 0] if name.endswith("_B") else padded
            made[name] = torch.from_numpy(shaped).to(batch.tokens_BS.device)
        return Batch(**made)

    def there(self, column_BT: Tensor, batch: Batch, target: Batch) -> Tensor:
        """A float32 column of `batch` in the rows of `target`, the other model's; 0 outside the responses."""
        return self._column(self._there, column_BT, batch, target, self._at_home, self._at_away)

    def back(self, column_BT: Tensor, batch: Batch, target: Batch) -> Tensor:
        """A float32 column of `batch`, the other model's, in the rows of `target`; 0 outside the responses."""
        return self._column(self._back, column_BT, batch, target, self._at_away, self._at_home)

    def _column(
        self,
        route: Route,
        column_BT: Tensor,
        batch: Batch,
        target: Batch,
        held: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:
        if self._is_same:
            return column_BT
        flat = column_BT[batch.mask_BT > 0].cpu().numpy()
        rows = dict(zip(held, _split(flat, [self._lengths[sample] for sample in held]), strict=True))
        moved = self._moved(
            route,
            {sample: [row] for sample, row in rows.items()},
            lambda sample: [(np.float32, self._lengths[sample])],
        )
        result_BT = torch.zeros_like(target.mask_BT)
        tokens = torch.from_numpy(np.concatenate([moved[sample][0] for sample in wanted]))
        result_BT[target.mask_BT > 0] = tokens.to(result_BT.device)
        return result_BT

    def _moved(self, route: Route, rows: Rows, sizes_of: Callable[[int], Sequence[tuple[type, int]]]) -> Rows:
        """The rows of the samples that this rank wants; `sizes_of` a sample: dtype and length of each of its arrays."""
        first, me = self._home.grid.ranks.start, self._home.rank
        others = {of: samples for of, samples in route.receives.items() if of != me}
        received = exchange(
            {to - first: partial(_joined, [rows[sample] for sample in samples]) for to, samples in route.sends.items()},
            {of - first: _sizes([sizes_of(sample) for sample in samples]) for of, samples in others.items()},
            self._home.role,
            "rows",
        )
        moved = {sample: rows[sample] for sample in route.receives.get(me, ())}
        for of, samples in others.items():
            counts = [[size for _, size in sizes_of(sample)] for sample in samples]
            parts = map(_split, received[of - first], zip(*counts, strict=True))
            moved |= {sample: list(arrays) for sample, arrays in zip(samples, zip(*parts, strict=True), strict=True)}
        return moved


def _width(name: str, length: int) -> int:
    """Numbers that a sample of `length` tokens has in a batch's field of this name: _BS, _BT or _B."""
    return {"S": length, "T": length - 1, "B": 1}[name[-1]]


def _split(flat: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(counts)[:-1])


def _joined(rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _sizes(of_samples: Sequence[Sequence[tuple[type, int]]]) -> list[tuple[type, int]]:
    return [(parts[0][0], sum(size for _, size in parts)) for parts in zip(*of_samples, strict=True)]
