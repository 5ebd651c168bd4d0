"""The way of samples between the ranks that train one model on them and those that train another.

Where actor and critic have parallel layouts of their own, or ranks of their own, a sample's columns go straight from a
rank that has them for the one model to those that want them for the other: which these are is a function of seed, step
and lengths, so that nobody asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.data.batch import Batch
from nemo_simplerl.data.sampler import all_rows
from nemo_simplerl.parallel.exchange import exchange
from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.rollout.completions import rows_of_flat
from nemo_simplerl.trainer.saving.record import is_first_of_replica


@dataclass(frozen=True)
class Share:
    """Which samples of a step each rank of the world trains one model on, in the order of its batch.

    mesh: the model's. Ranks that do not hold it train it on none.
    """

    owners: Sequence[Sequence[int]]
    mesh: Mesh

    @property
    def mine(self) -> Sequence[int]:
        """The samples of this rank."""
        return self.owners[self.mesh.rank]

    @property
    def spoken_for(self) -> list[int]:
        """The samples of which this rank keeps what its replica computed."""
        return list(self.mine) if is_first_of_replica(self.mesh) else []


def shares_of(
    lengths: Sequence[int], step: int, seed: int, *, window: int, meshes: Mapping[str, Mesh]
) -> dict[str, Share]:
    """The share of each rank in the samples of a step, by role: see data.sampler.rows_of. Like layouts have one share.

    meshes: of the roles, on all ranks of the world.
    """
    found: dict[Grid, Share] = {}
    for mesh in meshes.values():
        if (grid := mesh.grid) not in found:
            rows = all_rows(lengths, step, seed, window=window, num_ranks=grid.dp_size)
            owners = [rows[grid.dp_rank(rank)] if rank in grid.ranks else [] for rank in range(mesh.world_size)]
            found[grid] = Share(owners, mesh)
    return {role: found[mesh.grid] for role, mesh in meshes.items()}


@dataclass(frozen=True)
class Route:
    """What one rank passes on to others, and where it gets from what it wants: samples by rank of the world."""

    sends: dict[int, list[int]]
    receives: dict[int, list[int]]  # from itself too, what it has already


def route_of(rank: int, held: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Route:
    """The way of `rank` for samples that rank i of the world holds as held[i], and wants as wanted[i].

    A rank that holds what it wants keeps it. The ranks of a replica, which hold the same, take turns in sending.
    """
    holders: dict[int, list[int]] = {}
    for holder, samples in enumerate(held):
        for sample in samples:
            holders.setdefault(sample, []).append(holder)

    def sender(sample: int, receiver: int) -> int:
        ranks = holders[sample]
        return receiver if receiver in ranks else ranks[receiver % len(ranks)]

    sends: dict[int, list[int]] = {}
    receives: dict[int, list[int]] = {}
    for receiver, samples in enumerate(wanted):
        for sample in samples:
            of = sender(sample, receiver)
            if receiver == rank:
                receives.setdefault(of, []).append(sample)
            elif of == rank:
                sends.setdefault(receiver, []).append(sample)
    return Route(sends, receives)


class Travel:
    """Takes columns of a step's samples from the ranks of one model to those of another, and back.

    Nothing moves where both models have the same layout on the same ranks, and so one share.
    """

    def begin(self, lengths: Sequence[int], home: Share, away: Share) -> None:
        """Say which step the columns are of; `lengths`: the response tokens of every sample of it."""
        self._is_same = home is away
        if self._is_same:
            return
        rank = home.mesh.rank
        self._rank, self._lengths, self._home, self._away = rank, lengths, home, away
        self._there = route_of(rank, home.owners, away.owners)
        self._back = route_of(rank, away.owners, home.owners)

    def there(self, column_BT: Tensor, batch: Batch, target: Batch) -> Tensor:
        """A float32 column of `batch` in the rows of `target`, the other model's; 0 outside the responses. Collective
        over both models, as `back`."""
        return (
            column_BT if self._is_same else self._moved(self._there, column_BT, batch, target, self._home, self._away)
        )

    def back(self, column_BT: Tensor, batch: Batch, target: Batch) -> Tensor:
        """A float32 column of `batch`, the other model's, in the rows of `target`; 0 outside the responses."""
        return column_BT if self._is_same else self._moved(self._back, column_BT, batch, target, self._away, self._home)

    def _moved(
        self, route: Route, column_BT: Tensor, batch: Batch, target: Batch, held: Share, wanted: Share
    ) -> Tensor:
        rows = dict(zip(held.mine, self._split(column_BT[batch.mask_BT > 0].cpu().numpy(), held.mine), strict=True))

        def joined(samples: Sequence[int]) -> list[np.ndarray]:
            return [np.concatenate([rows[sample] for sample in samples])]

        others = {of: samples for of, samples in route.receives.items() if of != self._rank}
        received = exchange(
            {to: partial(joined, samples) for to, samples in route.sends.items()},
            {of: [(np.float32, sum(self._lengths[sample] for sample in samples))] for of, samples in others.items()},
            dist.group.WORLD,
            "columns",
        )
        found = {sample: rows[sample] for sample in route.receives.get(self._rank, ())}
        for of, samples in others.items():
            found |= zip(samples, self._split(received[of][0], samples), strict=True)
        result_BT = torch.zeros_like(target.mask_BT)
        if wanted.mine:
            tokens = torch.from_numpy(np.concatenate([found[sample] for sample in wanted.mine]))
            result_BT[target.mask_BT > 0] = tokens.to(result_BT.device)
        return result_BT

    def _split(self, flat: np.ndarray, samples: Sequence[int]) -> list[np.ndarray]:
        """The numbers of each sample."""
        return rows_of_flat(flat, np.array([self._lengths[sample] for sample in samples], dtype=np.int64))
