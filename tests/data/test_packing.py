"""Packed rows hold what padded ones hold, without the padding."""

import torch
from test_batch import EOS, three_rows

from nemo_simplerl.data.packing import bins, packed_micro_batches, unpack_to_batch


def test_the_longest_sequences_come_first_each_into_the_row_it_fills_best():
    assert bins([3, 9, 5, 2, 4, 12], 10) == [[5], [1], [2, 4], [0, 3]]  # the 12 is longer than any row
    assert bins([6, 4, 5, 3], 10) == [[0, 1], [2, 3]]
    assert bins([6, 7, 3], 10) == [[1, 2], [0]]  # 3 would fit beside the 6 too
    assert bins([4, 4], 8) == [[0, 1]]
    assert bins([], 8) == []


def test_sequences_stand_end_to_end_with_a_zero_between_their_columns():
    batch = three_rows().select([2, 0, 1])
    (micro,) = packed_micro_batches(batch, 100, numbers_BT=torch.arange(1.0, 13.0).reshape(3, 4))
    assert micro.is_packed
    assert micro.tokens_BS.tolist() == [[1, 2, 3, 11, EOS, 4, 21, 22, 23, 24, 5, 6, EOS]]
    assert (micro.rows.tolist(), micro.lengths_B.tolist()) == ([1, 2, 0], [5, 5, 3])
    assert micro.mask_BT.tolist() == [[0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1]]
    assert micro.columns["numbers_BT"].tolist() == [[5, 6, 7, 8, 0, 9, 10, 11, 12, 0, 1, 2]]
    assert micro.scores_B.tolist() == [1.0, -1.0, -0.5]
    assert micro.sequences_BT.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]]
    assert batch.micro_batches(2)[0].sequences_BT.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_together_undoes_both_cuts():
    batch = three_rows().select([2, 0, 1])
    column_BT = torch.arange(1.0, 13.0).reshape(3, 4) * batch.mask_BT
    for micros in (
        packed_micro_batches(batch, 8, column_BT=column_BT),
        packed_micro_batches(batch, 3, column_BT=column_BT),
        batch.micro_batches(2, column_BT=column_BT),
    ):
        results = [micro.columns["column_BT"] for micro in micros]
        assert torch.equal(unpack_to_batch(results, micros, batch.mask_BT), column_BT)
