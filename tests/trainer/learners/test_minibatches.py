"""The weights of tokens in the means of an update, whose counts are over all data ranks."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.distributed as dist

from nemo_simplerl.data.batch import collate
from nemo_simplerl.trainer.learners.minibatches import mini_batches
from support.ranks import run_ranks

SIZES = SimpleNamespace(global_batch_size=4, micro_batch_size=2, micro_batch_tokens=None)


@dataclass(frozen=True)
class Answer:
    num_tokens: int
    finish_reason: str
    is_correct: bool

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (7,) * self.num_tokens

    @property
    def logprobs(self) -> tuple[float, ...]:
        return (-1.0,) * self.num_tokens


# One update: one of the three right responses is cut, and left out of the loss.
OF_RANK = [
    [Answer(3, "stop", True), Answer(1, "stop", False)],
    [Answer(2, "length", True), Answer(4, "stop", True)],
]


def _weights(aggregation: str) -> list[dict[str, list[float]]]:
    """Of each row of this rank, from the longest down: the weights of its response's tokens in both means."""
    dist.init_process_group("gloo")
    answers = OF_RANK[dist.get_rank()]
    batch = collate(
        [(1,)] * 2,
        answers,
        [1.0] * 2,
        is_correct=[answer.is_correct for answer in answers],
        pad_id=0,
        truncated="mask",
        overwrite_truncated_with_eos=None,
        device="cpu",
    )
    mesh = SimpleNamespace(dp_size=2, data=dist.group.WORLD)
    minis = mini_batches(batch, SIZES, aggregation=aggregation, epochs=1, mesh=mesh, max_tokens=5, weigh_correct=True)
    ((micro,),) = minis
    dist.destroy_process_group()
    return [
        {name: micro.columns[name][row][micro.mask_BT[row] > 0].tolist() for name in micro.columns}
        for row in range(len(micro))
    ]


def test_the_constant_counts_responses_that_are_left_out_and_right_ones_have_a_mean_of_their_own():
    # 4 responses of at most 5 tokens. Of the right ones 3 and 4 tokens are in the loss.
    (first, second), (third, fourth) = run_ranks(_weights, 2, "token_sum_over_max")
    each, of_right = torch.tensor(1 / 20).item(), torch.tensor(1 / 7).item()
    assert [row["weights_BT"] for row in (first, second, third, fourth)] == [[each] * 3, [each], [each] * 4, [0.0] * 2]
    assert first["correct_weights_BT"] + third["correct_weights_BT"] == [of_right] * 7
    assert not any(second["correct_weights_BT"] + fourth["correct_weights_BT"])
    # The metrics are means over the 8 tokens of the loss.
    assert sum(sum(row["metric_weights_BT"]) for row in (first, second, third, fourth)) == 1.0


def test_the_mean_over_sequences_leaves_out_those_without_a_token():
    (first, _), (third, fourth) = run_ranks(_weights, 2, "seq_mean")
    assert first["weights_BT"] == [torch.tensor(1 / 9).item()] * 3 and "metric_weights_BT" not in first
    assert third["weights_BT"] == [torch.tensor(1 / 12).item()] * 4 and fourth["weights_BT"] == [0.0] * 2
