"""Where the ranks of a parallel layout stand: arithmetic, without torch."""

from dataclasses import dataclass

import numpy as np

Groups = list[list[int]]  # global ranks, ascending in each


@dataclass(frozen=True)
class Grid:
    """A layout of ranks that follow each other: tensor ranks first, then data ranks, then pipeline stages.

    That is Megatron's own order ("tp-cp-ep-dp-pp"), in which the tensor ranks of a replica share a node.
    Raises ValueError where the ranks do not divide into replicas.
    """

    ranks: range  # global
    tp_size: int
    pp_size: int

    def __post_init__(self) -> None:
        replica = self.tp_size * self.pp_size
        if not len(self.ranks) or len(self.ranks) % replica:
            raise ValueError(
                f"{len(self.ranks)} ranks cannot hold replicas of {replica} ranks (tensor {self.tp_size} x pipeline "
                f"{self.pp_size}); start a multiple of {replica}."
            )

    @property
    def dp_size(self) -> int:
        return len(self.ranks) // (self.tp_size * self.pp_size)

    def dp_rank(self, rank: int) -> int:
        """The data rank of the global rank `rank`."""
        return (rank - self.ranks.start) // self.tp_size % self.dp_size

    @property
    def tensor(self) -> Groups:
        """The groups of ranks that share the layers of one stage of one replica."""
        return self._cube.reshape(-1, self.tp_size).tolist()

    @property
    def data(self) -> Groups:
        """The groups of ranks that hold the same shard of different replicas."""
        return self._cube.transpose(0, 2, 1).reshape(-1, self.dp_size).tolist()

    @property
    def pipeline(self) -> Groups:
        """The groups of ranks that pass activations to each other."""
        return self._cube.transpose(1, 2, 0).reshape(-1, self.pp_size).tolist()

    @property
    def model(self) -> Groups:
        """The groups of ranks that share a replica, by data rank."""
        return self._cube.transpose(1, 0, 2).reshape(self.dp_size, -1).tolist()

    @property
    def stages(self) -> Groups:
        """The groups of ranks that hold the same layers, of all replicas."""
        return self._cube.reshape(self.pp_size, -1).tolist()

    @property
    def _cube(self) -> np.ndarray:
        return np.array(self.ranks).reshape(self.pp_size, self.dp_size, self.tp_size)
