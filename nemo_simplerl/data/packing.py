"""Packing: sequences end to end in rows of a bounded number of tokens, so that no pass computes padding.

Legend: B samples, T predicted tokens of a sequence, P tokens of a packed row. A packed micro-batch has one row: its
tokens_BS is [1, P], its `_BT` tensors are [1, P - 1] with a zero where one sequence ends and the next begins, and its
`_B` tensors have one entry a sequence.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from nemo_simplerl.data.batch import Batch, MicroBatch

_WHOLE = ("lengths_B", "prompt_lengths_B", "scores_B", "groups_B", "truncated_B", "is_correct_B")


def packed_micro_batches(batch: Batch, max_tokens: int, **columns_BT: Tensor) -> list[MicroBatch]:
    """Pack the batch into rows of at most `max_tokens` tokens; a longer sequence has a row of its own.

    `columns_BT` are tensors [B, T] that travel with the rows.
    """
    return [_packed(batch, rows, columns_BT) for rows in bins(batch.lengths_B.tolist(), max_tokens)]


def bins(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of the sequences of each row: from the longest down, each into the row that it fills best."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of each row, and its place; sorted
    for index in order:
        best = bisect_left(room, (lengths[index], 0))
        if best == len(room):
            left, place = max_tokens, len(found)
            found.append([])
        else:
            left, place = room.pop(best)
        found[place].append(index)
        insort(room, (left - lengths[index], place))
    return found


def unpack_to_batch(results: Sequence[Tensor], micro_batches: Sequence[MicroBatch], like_BT: Tensor) -> Tensor:
    """float32 [B, T] in the order of the batch from the results of all micro-batches; 0 where there is no token."""
    whole_BT = torch.zeros_like(like_BT)
    for result, micro in zip(results, micro_batches, strict=True):
        if micro.is_packed:
            row_BT = torch.zeros_like(like_BT[micro.rows])
            row_BT[_steps(micro.lengths_B, row_BT.shape[1])] = result[0, _inner(micro.lengths_B)]
            whole_BT[micro.rows] = row_BT
        else:
            whole_BT[micro.rows, : result.shape[1]] = result
    return whole_BT


def _packed(batch: Batch, rows: list[int], columns_BT: dict[str, Tensor]) -> MicroBatch:
    index = torch.tensor(rows, device=batch.tokens_BS.device)
    lengths_B = batch.lengths_B[index]
    steps_BT, inner = _steps(lengths_B, batch.mask_BT.shape[1]), _inner(lengths_B)

    def joined(column_BT: Tensor) -> Tensor:
        row_1P = column_BT.new_zeros(1, len(inner))
        row_1P[0, inner] = column_BT[index][steps_BT]
        return row_1P

    names = [field.name for field in fields(Batch) if field.name not in ("tokens_BS", *_WHOLE)]
    return MicroBatch(
        tokens_BS=batch.tokens_BS[index][_steps(lengths_B + 1, batch.tokens_BS.shape[1])][None],
        **{name: getattr(batch, name)[index] for name in _WHOLE},
        **{name: joined(getattr(batch, name)) for name in names},
        columns={name: joined(column_BT) for name, column_BT in columns_BT.items()},
        rows=index,
        is_packed=True,
    )


def _steps(lengths_B: Tensor, width: int) -> Tensor:
    """bool [B, width]: the tokens that a sequence predicts, one fewer than it has."""
    return torch.arange(width, device=lengths_B.device) < lengths_B[:, None] - 1


def _inner(lengths_B: Tensor) -> Tensor:
    """bool [P - 1]: where a packed row predicts a token of the same sequence."""
    is_inner_P = lengths_B.new_ones(int(lengths_B.sum()), dtype=torch.bool)
    is_inner_P[lengths_B.cumsum(0) - 1] = False
    return is_inner_P[:-1]
