"""Mini-batches of a rollout: the samples of one update, and the global counts its losses are divided by."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.algo.loss import token_weights
from nemo_simplerl.config.schema import ActorConfig, CriticConfig, SftConfig
from nemo_simplerl.data.batch import Batch, MicroBatch
from nemo_simplerl.parallel.mesh import Mesh


@dataclass(frozen=True)
class MiniBatch:
    """This data rank's share of one update. The counts are over all data ranks."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_sequences: int

    def weights(self, micro: MicroBatch, aggregation: str) -> Tensor:
        """float32 [b, t]: what each token of one of the micro-batches weighs in the update's mean."""
        return token_weights(
            micro.loss_mask_BT, aggregation, num_tokens=self.num_tokens, num_sequences=self.num_sequences
        )


def mini_batches(
    batch: Batch,
    sizes: ActorConfig | CriticConfig | SftConfig,
    *,
    epochs: int,
    mesh: Mesh,
    **columns_BT: Tensor,
) -> Iterator[MiniBatch]:
    """Cut the rollout into updates of `sizes.global_batch_size` samples, `epochs` times over. Collective.

    Data rank r holds rows r, r + DP, ... of the rollout's permutation (see Roles.local_rows), so update k has the
    same samples at every data-parallel size.
    """
    size = sizes.global_batch_size // mesh.dp_size
    # Within an update the order is free: rows of like length share a micro-batch, which is cut to its longest.
    rows = [
        start + batch.lengths_B[start : start + size].argsort(descending=True) for start in range(0, len(batch), size)
    ]
    parts = [batch.select(part_rows) for part_rows in rows]
    counts = torch.stack([_counts(part.loss_mask_BT) for part in parts])
    dist.all_reduce(counts, group=mesh.data)
    for _ in range(epochs):
        for index, (num_tokens, num_sequences) in enumerate(counts.tolist()):
            part_columns = {name: column_BT[rows[index]] for name, column_BT in columns_BT.items()}
            yield MiniBatch(
                parts[index].micro_batches(sizes.micro_batch_size, **part_columns), num_tokens, num_sequences
            )


def _counts(loss_mask_BT: Tensor) -> Tensor:
    """int64 [2]: tokens and sequences that count."""
    is_counted_BT = loss_mask_BT > 0
    return torch.stack([is_counted_BT.sum(), is_counted_BT.any(dim=1).sum()])
