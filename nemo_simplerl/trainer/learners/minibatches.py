"""A rollout cut into mini-batches, one an update, and those into micro-batches: padded rows or packed sequences."""

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.algo.loss import token_weights
from nemo_simplerl.config.schema import ActorConfig, CriticConfig, SftConfig
from nemo_simplerl.data.batch import Batch, MicroBatch
from nemo_simplerl.data.packing import packed_micro_batches
from nemo_simplerl.parallel.mesh import Mesh

MiniBatch: TypeAlias = list[MicroBatch]  # this data rank's share of one update


def mini_batches(
    batch: Batch,
    sizes: ActorConfig | CriticConfig | SftConfig,
    *,
    aggregation: str,
    epochs: int,
    mesh: Mesh,
    **columns_BT: Tensor,
) -> Iterator[MiniBatch]:
    """Cut the rollout into updates of `sizes.global_batch_size` samples, `epochs` times over. Collective.

    Beside `columns_BT`, each micro-batch has the column weights_BT: the weight of each token in the mean of its update
    over all data ranks, by `aggregation` (algo.loss.token_weights). The batch holds this data rank's share of every
    update, one behind the other (see Roles.local_rows): update k has the same samples at every data-parallel size.
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
            part = parts[index]
            columns = {name: column_BT[rows[index]] for name, column_BT in columns_BT.items()}
            columns["weights_BT"] = token_weights(
                part.loss_mask_BT, aggregation, num_tokens=num_tokens, num_sequences=num_sequences
            )
            yield _cut(part, sizes.micro_batch_size, sizes.micro_batch_tokens, columns)


def forward_micro_batches(batch: Batch, sizes: ActorConfig | CriticConfig) -> list[MicroBatch]:
    """The whole batch cut into micro-batches for a forward-only pass."""
    return _cut(batch, sizes.forward_micro_batch_size, sizes.forward_micro_batch_tokens, {})


def _cut(batch: Batch, size: int, max_tokens: int | None, columns_BT: dict[str, Tensor]) -> list[MicroBatch]:
    if max_tokens is None:
        return batch.micro_batches(size, **columns_BT)
    return packed_micro_batches(batch, max_tokens, **columns_BT)


def _counts(loss_mask_BT: Tensor) -> Tensor:
    """int64 [2]: the numbers of tokens and of sequences that the loss counts."""
    is_counted_BT = loss_mask_BT > 0
    return torch.stack([is_counted_BT.sum(), is_counted_BT.any(dim=1).sum()])
