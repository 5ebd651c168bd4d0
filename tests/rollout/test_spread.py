"""Completions on their way from the ranks that sampled them to those that train on them: which bytes move."""

import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist

from nemo_simplerl.eval.run import SpreadRows, grade_sharded
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer.logging.run_log import RunLog
from support.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/bench"))

import data_plane  # noqa: E402

COMPLETIONS = [
    Completion((i,) * length, (-float(i),) * length, f"text {i} \ud800", "stop" if i % 2 else "length", 1, i)
    for i, length in enumerate([3, 1, 2, 5, 4, 1])
]


def _spread(holders: list[int]) -> SpreadCompletions:
    every, rank = Completions.of(COMPLETIONS), dist.get_rank()
    facts = (every.lengths, every.is_stopped, every.versions, every.seeds, np.array(holders), rank)
    return SpreadCompletions(*facts, every.select(np.flatnonzero(np.array(holders) == rank)))


def _sent_to(holders: list[int], owners: list[list[int]], num_copies: int) -> tuple[list, int]:
    """The responses that this rank gets, and the bytes that it sent. The last `num_copies` ranks want the same."""
    dist.init_process_group("gloo")
    owners = [*owners, *[owners[-1]] * num_copies]
    sent, isend = [], dist.isend
    dist.isend = lambda tensor, *given: sent.append(tensor.nbytes) or isend(tensor, *given)
    rows = _spread(holders).to_owners(owners, dist.group.WORLD)
    return [(row.token_ids.tolist(), row.logprobs.tolist(), row.finish_reason) for row in rows], sum(sent)


def test_each_token_travels_once_from_the_rank_that_sampled_it_to_each_that_trains_on_it():
    holders, owners = [1, 0, 0, 2, 1, 2], [[5, 1, 0], [2, 4, 3]]
    answers = run_ranks(_sent_to, 3, holders, owners, 1)
    rows = [(list(one.token_ids), list(one.logprobs), one.finish_reason) for one in COMPLETIONS]
    assert [found for found, _ in answers] == [[rows[i] for i in of] for of in [*owners, owners[-1]]]
    # Rank 0 sends sample 2 (2 tokens) to ranks 1 and 2; rank 1 sample 0 to rank 0 and 4 to rank 2; rank 2 5 and 3.
    assert [sent for _, sent in answers] == [8 * (2 + 2), 8 * (3 + 4), 8 * (1 + 5)]


def _nothing_for_some() -> list:
    dist.init_process_group("gloo")
    return [len(_spread([0] * 6).to_owners(owners, dist.group.WORLD)) for owners in ([[], [0, 5]], [[1], []])]


def test_ranks_that_hold_nothing_or_train_on_nothing_take_part_all_the_same():
    assert run_ranks(_nothing_for_some, 2) == [[0, 1], [2, 0]]


def _graded_and_logged(holders: list[int], folder: Path) -> tuple[list, list, int]:
    """What this rank graded, the verdicts that it heard of, and the rows that it held; rows are written to a file."""
    dist.init_process_group("gloo")
    graded = []

    def grade(items):
        graded.extend((text, facts["completion_ids"]) for _, text, facts in items)
        return [Grade("correct" if len(facts["completion_ids"]) > 2 else "incorrect", "ok", 0.0) for *_, facts in items]

    spread = _spread(holders)
    grades = grade_sharded(grade, [data_plane.PROMPT] * 3, spread, dist.group.WORLD)
    rows = SpreadRows([{"seed": int(seed)} for seed in spread.held.seeds], spread.holders)
    log = RunLog(folder, tensorboard=False, resume_step=None, is_writer=dist.get_rank() == 0)
    log.rollouts(1, rows, group=dist.group.WORLD)
    log.close()
    return graded, [one.verdict for one in grades], len(rows.held)


def test_a_rank_grades_what_it_holds_unless_others_hold_less_and_rows_are_written_in_order(tmp_path):
    items = [(one.text, list(one.token_ids)) for one in COMPLETIONS]
    verdicts = ["correct" if len(one.token_ids) > 2 else "incorrect" for one in COMPLETIONS]
    even, uneven = [1, 0, 0, 1, 1, 0], [1] * 6
    for holders, graders in ((even, even), (uneven, [0, 1, 0, 1, 0, 1])):
        answers = run_ranks(_graded_and_logged, 2, holders, tmp_path / str(sum(holders)))
        for rank, (graded, heard, num_held) in enumerate(answers):
            assert graded == [item for item, grader in zip(items, graders, strict=True) if grader == rank]
            assert (heard, num_held) == (verdicts, holders.count(rank))
        lines = (tmp_path / str(sum(holders)) / "rollouts/step_000001.jsonl").read_text()
        assert lines == "".join(f'{{"seed": {seed}}}\n' for seed in range(6))


def _measured(*given) -> dict:
    dist.init_process_group("gloo")
    return data_plane.measure(*given)


def test_a_rollout_moves_no_byte_but_8_for_each_token_that_another_rank_trains_on(tmp_path):
    found = data_plane.summary(run_ranks(_measured, 2, 512, 64, False, tmp_path))
    assert found["bytes_per_token"] == found["minimum_per_token"] and 3 < found["bytes_per_token"] < 5
    assert len(list(tmp_path.glob("step_000001.000000.*.npz"))) == 2, "each rank has journalled its own"
