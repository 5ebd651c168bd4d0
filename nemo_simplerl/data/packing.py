"""Sequences end to end in rows of a bounded number of tokens, so that no pass computes padding.

Legend: B samples, T predicted tokens of a sequence, P tokens of a packed row. A packed micro-batch has one row: its
tokens_BS is [1, P], its `_BT` tensors are [1, P - 1] with a zero where one sequence ends and the next begins, and its
`_B` tensors have one entry a sequence.
"""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from nemo_simplerl.data.batch import Batch, MicroBatch

_WHOLE = ("lengths_B", "prompt_lengths_B", "scores_B", "truncated_B")


def packed_micro_batches(batch: Batch, max_tokens: int, **columns_BT: Tensor) -> list[MicroBatch]:
    """The batch in packed rows of at most `max_tokens` tokens; a longer sequence has a row of its own.

    `columns_BT` are tensors [B, T] that travel with the rows.
    """
    lengths = batch.lengths_B.tolist()
    return [_packed(batch, rows, [lengths[row] for row in rows], columns_BT) for rows in bins(lengths, max_tokens)]


def bins(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of the sequences of each row: from the longest down, each into the first row that has room."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found: list[list[int]] = []
    room: list[int] = []
    for index in order:
        place = next((place for place, left in enumerate(room) if left >= lengths[index]), len(found))
        if place == len(found):
            found.append([])
            room.append(max_tokens)
        found[place].append(index)
        room[place] -= lengths[index]
    return found


def together(results: Sequence[Tensor], micro_batches: Sequence[MicroBatch], like_BT: Tensor) -> Tensor:
    """float32 [B, T] in the order of the batch: what a pass answered for each micro-batch, 0 where it has no token."""
    whole_BT = torch.zeros_like(like_BT)
    for result, micro in zip(results, micro_batches, strict=True):
        if micro.is_packed:
            start = 0
            for row, length in zip(micro.rows.tolist(), micro.lengths_B.tolist(), strict=True):
                whole_BT[row, : length - 1] = result[0, start : start + length - 1]
                start += length
        else:
            whole_BT[micro.rows, : result.shape[1]] = result
    return whole_BT


def _packed(batch: Batch, rows: list[int], lengths: list[int], columns_BT: dict[str, Tensor]) -> MicroBatch:
    index = torch.tensor(rows, device=batch.tokens_BS.device)

    def joined(column_BT: Tensor) -> Tensor:
        parts = [column_BT[row, : length - 1] for row, length in zip(rows, lengths, strict=True)]
        gap = column_BT.new_zeros(1)
        return torch.cat([piece for part in parts for piece in (part, gap)][:-1])[None]

    tokens = torch.cat([batch.tokens_BS[row, :length] for row, length in zip(rows, lengths, strict=True)])
    names = [field.name for field in fields(Batch) if field.name not in ("tokens_BS", *_WHOLE)]
    return MicroBatch(
        tokens_BS=tokens[None],
        **{name: getattr(batch, name)[index] for name in _WHOLE},
        **{name: joined(getattr(batch, name)) for name in names},
        columns={name: joined(column_BT) for name, column_BT in columns_BT.items()},
        rows=index,
        is_packed=True,
    )
