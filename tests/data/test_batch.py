from dataclasses import dataclass

import pytest
import torch

from nemo_simplerl.data.batch import Batch, collate

PAD, EOS = 99, 7


@dataclass(frozen=True)
class Answer:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str = "stop"


def three_rows(truncated: str = "penalize", overwrite: int | None = None) -> Batch:
    """A batch of a finished response, a truncated one and a lone EOS, after prompts of 3, 1 and 2 tokens."""
    return collate(
        [(1, 2, 3), (4,), (5, 6)],
        [
            Answer((11, EOS), (-0.5, -0.25)),
            Answer((21, 22, 23, 24), (-1.0, -2.0, -3.0, -4.0), "length"),
            Answer((EOS,), (-0.125,)),
        ],
        [1.0, -1.0, -0.5],
        pad_id=PAD,
        truncated=truncated,
        overwrite_truncated_with_eos=overwrite,
        device="cpu",
    )


def test_a_row_is_prompt_then_response_then_padding():
    batch = three_rows()
    assert batch.tokens_BS.tolist() == [[1, 2, 3, 11, EOS], [4, 21, 22, 23, 24], [5, 6, EOS, PAD, PAD]]
    assert batch.tokens_BS.dtype == torch.int64
    assert batch.lengths_B.tolist() == [5, 5, 3]
    assert batch.prompt_lengths_B.tolist() == [3, 1, 2]
    assert batch.truncated_B.tolist() == [False, True, False]
    assert batch.scores_B.tolist() == [1.0, -1.0, -0.5]
    assert len(batch) == 3


def test_the_mask_starts_at_the_last_prompt_token_and_ends_before_the_eos():
    # Index t predicts token t + 1: row 0 predicts 11 at t=2 and EOS at t=3.
    expected = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]]
    batch = three_rows()
    assert batch.mask_BT.tolist() == expected
    assert batch.mask_BT.dtype == torch.float32
    predicted = batch.tokens_BS[:, 1:][batch.mask_BT.bool()]
    assert predicted.tolist() == [11, EOS, 21, 22, 23, 24, EOS]


def test_engine_logprobs_stand_at_their_tokens_and_are_zero_elsewhere():
    expected = [[0, 0, -0.5, -0.25], [-1, -2, -3, -4], [0, -0.125, 0, 0]]
    assert three_rows().engine_logprobs_BT.tolist() == expected


def test_penalised_truncation_trains_every_response_token():
    batch = three_rows("penalize")
    assert torch.equal(batch.loss_mask_BT, batch.mask_BT)


def test_masked_truncation_leaves_only_the_cut_rows_out_of_the_loss():
    batch = three_rows("mask")
    assert batch.loss_mask_BT.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert batch.mask_BT[1].tolist() == [1, 1, 1, 1]


def test_overwriting_puts_eos_over_the_last_token_of_cut_responses_alone():
    batch = three_rows(overwrite=EOS)
    assert batch.tokens_BS[1].tolist() == [4, 21, 22, 23, EOS]
    assert torch.equal(batch.tokens_BS[[0, 2]], three_rows().tokens_BS[[0, 2]])
    assert torch.equal(batch.mask_BT, three_rows().mask_BT)


def test_an_eos_that_was_never_sampled_has_no_log_probability_of_the_engines():
    batch = three_rows(overwrite=EOS)
    assert batch.engine_mask_BT.tolist() == [[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 0, 0]]
    assert batch.engine_logprobs_BT[1].tolist() == [-1, -2, -3, 0]
    assert torch.equal(three_rows().engine_mask_BT, batch.mask_BT)


def test_micro_batches_keep_the_row_order_and_cut_to_their_longest_row():
    batch = three_rows().select([2, 0, 1])
    advantages_BT = torch.arange(12.0).reshape(3, 4)
    single, pair = batch.micro_batches(1, advantages_BT=advantages_BT)[0], batch.micro_batches(2)[1]
    assert single.tokens_BS.tolist() == [[5, 6, EOS]]
    assert single.mask_BT.tolist() == single.loss_mask_BT.tolist() == [[0, 1]]
    assert single.engine_logprobs_BT.tolist() == [[0, -0.125]]
    assert single.engine_mask_BT.tolist() == [[0, 1]]
    assert single.columns["advantages_BT"].tolist() == [[0, 1]]
    assert pair.tokens_BS.tolist() == [[4, 21, 22, 23, 24]]
    assert [micro.scores_B.tolist() for micro in batch.micro_batches(2)] == [[-0.5, 1.0], [-1.0]]


def test_a_micro_batch_loses_no_response_token():
    batch = three_rows().select([2, 2, 0, 1])
    for size in (1, 2, 3, 4, 9):
        micros = batch.micro_batches(size)
        assert sum(int(micro.mask_BT.sum()) for micro in micros) == int(batch.mask_BT.sum()) == 8
        assert all(micro.tokens_BS.shape[1] == micro.mask_BT.shape[1] + 1 for micro in micros)


def test_select_keeps_the_width():
    short = three_rows().select(torch.tensor([2, 2]))
    assert short.tokens_BS.tolist() == [[5, 6, EOS, PAD, PAD]] * 2
    assert short.mask_BT.shape == (2, 4)
    assert short.truncated_B.tolist() == [False, False]


@pytest.mark.parametrize(
    ("prompts", "answer", "scores", "message"),
    [
        ([(1,)], Answer((), ()), [1.0], "row 0 has an empty completion"),
        ([()], Answer((3,), (-1.0,)), [1.0], "row 0 has an empty prompt"),
        ([(1,)], Answer((3, 4), (-1.0,)), [1.0], "2 response tokens and 1 log-probabilities"),
        ([(1,)], Answer((3,), (-1.0,)), [], "1 prompts, 1 completions and 0 scores"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(prompts, answer, scores, message):
    with pytest.raises(ValueError, match=message):
        collate(
            prompts,
            [answer],
            scores,
            pad_id=PAD,
            truncated="penalize",
            overwrite_truncated_with_eos=None,
            device="cpu",
        )


def test_a_micro_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        three_rows().micro_batches(0)
