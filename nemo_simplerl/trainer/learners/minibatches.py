"""A rollout cut into mini-batches, one an update, and those into micro-batches: padded rows or packed sequences."""

from collections.abc import Iterator
from functools import partial
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
    max_tokens: int | None = None,
    weigh_correct: bool = False,
    **columns_BT: Tensor,
) -> Iterator[MiniBatch]:
    """Cut the rollout into updates of `sizes.global_batch_size` samples, `epochs` times over. Collective.

    Beside `columns_BT`, each micro-batch has the column weights_BT: the weight of each token in the mean of its update
    over all data ranks, by `aggregation` (algo.loss.token_weights). Under token_sum_over_max, which divides by
    `max_tokens`, there is also metric_weights_BT, those of the mean over tokens, since its own do not add up to 1; with
    `weigh_correct` also correct_weights_BT, those of the mean over the tokens of right responses. The batch holds this
    data rank's share of every update, one behind the other (see data.sampler.rows_of): update k has the same samples at
    every data-parallel size.
    """
    size = sizes.global_batch_size // mesh.dp_size
    # Within an update the order is free: rows of like length share a micro-batch, which is cut to its longest.
    rows = [
        start + batch.lengths_B[start : start + size].argsort(descending=True) for start in range(0, len(batch), size)
    ]
    parts = [batch.select(part_rows) for part_rows in rows]
    counts = torch.stack([_counts(part) for part in parts])
    dist.all_reduce(counts, group=mesh.data)
    for _ in range(epochs):
        for index, (num_tokens, num_sequences, num_rows, num_correct_tokens) in enumerate(counts.tolist()):
            part = parts[index]
            columns = {name: column_BT[rows[index]] for name, column_BT in columns_BT.items()}
            weights_of = partial(token_weights, part.loss_mask_BT, num_tokens=num_tokens)
            if aggregation == "token_sum_over_max":
                # A constant, so rows that are masked whole count too.
                columns["weights_BT"] = weights_of(aggregation, num_sequences=num_rows, max_tokens=max_tokens)
                columns["metric_weights_BT"] = weights_of("token_mean", num_sequences=num_sequences)
            else:
                columns["weights_BT"] = weights_of(aggregation, num_sequences=num_sequences)
            if weigh_correct:
                columns["correct_weights_BT"] = _correct_mask_BT(part) / max(num_correct_tokens, 1)
            yield _cut(part, sizes.micro_batch_size, sizes.micro_batch_tokens, columns)


def forward_micro_batches(batch: Batch, sizes: ActorConfig | CriticConfig) -> list[MicroBatch]:
    """The whole batch cut into micro-batches for a forward-only pass."""
    return _cut(batch, sizes.forward_micro_batch_size, sizes.forward_micro_batch_tokens, {})


def _cut(batch: Batch, size: int, max_tokens: int | None, columns_BT: dict[str, Tensor]) -> list[MicroBatch]:
    if max_tokens is None:
        return batch.micro_batches(size, **columns_BT)
    return packed_micro_batches(batch, max_tokens, **columns_BT)


def _counts(part: Batch) -> Tensor:
    """int64 [4]: the numbers of tokens and of sequences that the loss counts, of rows, and of right responses' tokens
    that it counts."""
    is_counted_BT = part.loss_mask_BT > 0
    num_rows = torch.tensor(len(part), device=is_counted_BT.device)
    num_sequences, num_correct_tokens = is_counted_BT.any(dim=1).sum(), (_correct_mask_BT(part) > 0).sum()
    return torch.stack([is_counted_BT.sum(), num_sequences, num_rows, num_correct_tokens])


def _correct_mask_BT(part: Batch) -> Tensor:
    return part.loss_mask_BT * part.is_correct_B[:, None]
