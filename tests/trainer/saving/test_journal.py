"""The record of a step and the journal that keeps it: exact, refused when damaged or another's, and used."""

import io
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from nemo_simplerl.config.load import load
from nemo_simplerl.parallel.mesh import destroy_mesh
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer.guard.faults import Faults, installed
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.loop import train
from nemo_simplerl.trainer.open_run import open_run
from nemo_simplerl.trainer.saving.journal import Journal
from nemo_simplerl.trainer.saving.parts import Column, read_part
from nemo_simplerl.trainer.saving.record import (
    PartFile,
    StepKey,
    StepRecord,
    head_bytes,
    head_from,
    read_record,
)
from nemo_simplerl.trainer.setup.world import join_world
from nemo_simplerl.trainer.start import start_training
from support.ranks import run_ranks
from support.small_run import SMALL, books, train_here


@pytest.fixture
def one_rank():
    """A world of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    destroy_mesh()


KEY = StepKey(step=3, weight_version=2, request_digest="a", settings_digest="b")


def _completion(ids: list[int], text: str = "x") -> Completion:
    logprobs = tuple(torch.tensor([-0.1 * (i + 1) for i in range(len(ids))]).tolist())
    return Completion(tuple(ids), logprobs, text, "stop", 2, 2**62 + len(ids))


COMPLETIONS = [_completion([5, 6], "\u03c0 = \ud800"), _completion([7]), _completion([8, 9, 1])]


def _record() -> StepRecord:
    return StepRecord(
        key=KEY,
        completions=SpreadCompletions.alone(Completions.of(COMPLETIONS)),
        grades=[
            Grade("correct", "ok", 0.25),
            Grade("incorrect", "timeout", 5000.0, score=0.1 + 0.2, metrics={"z": 1 / 3, "a": 2.0}),
            Grade("no_answer", "crash", 0.1, error="\ud800 in the traceback"),
        ],
        columns={
            "values": Column([2, 0, 1], np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=np.float32)),
            # an estimator's own, named like an array of the completions
            "lengths": Column([0, 1, 2], np.arange(6, dtype=np.float32)),
        },
        finished_updates={"critic": [{"loss": 0.1 + 0.2, "lr": 1e-5}], "actor": []},
    )


def _written_and_read(record: StepRecord) -> StepRecord:
    content, digest = record.own_part.to_bytes()
    head = head_from(head_bytes(record, [PartFile("part", digest)], record.completions.holders))
    found, _ = read_record(head, lambda name: {"part": io.BytesIO(content)}[name], None)
    return found


def test_a_record_comes_back_exactly(one_rank):
    record = _record()
    found = _written_and_read(record)
    assert (found.key, list(found.completions.held), found.grades, found.finished_updates) == (
        record.key,
        COMPLETIONS,
        record.grades,
        record.finished_updates,
    )
    for name, column in record.columns.items():
        assert found.columns[name].samples == column.samples
        assert np.array_equal(found.columns[name].values, column.values)
    assert found.columns.keys() == record.columns.keys() and found.num_updates == 1
    assert _written_and_read(StepRecord(KEY, completions=record.completions)).grades is None


def test_nothing_pickled_is_ever_read(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    np.savez(tmp_path / "evil.npz", head=np.array([Harm()], dtype=object))
    with pytest.raises(ValueError, match="no whole record of a step"):
        head_from((tmp_path / "evil.npz").read_bytes())
    np.savez(tmp_path / "evil.npz", samples=np.array([Harm()], dtype=object))
    with pytest.raises(ValueError, match="no whole part of a record"):
        read_part(tmp_path / "evil.npz", "")
    assert not (tmp_path / "harm").exists()


def _restored(folder: Path, is_before: bool, num_others: int = 0) -> list:
    """What the ranks of a run find of a step that another number of ranks left, or an earlier version; the first
    `num_others` ranks of the world do not sample."""
    dist.init_process_group("gloo")
    group = dist.new_group(list(range(num_others, dist.get_world_size())))
    if dist.get_rank() < num_others:
        dist.barrier()
        return []
    rank, size = group.rank(), group.size()
    journal = Journal(folder, group)
    if is_before:
        whole = Completions.of(COMPLETIONS)
        holders = np.arange(3) % size
        facts = (whole.lengths, whole.is_stopped, whole.versions, whole.seeds, holders, rank)
        held = whole.select(np.flatnonzero(holders == rank))
        journal.write(StepRecord(KEY, SpreadCompletions(*facts, held)))
    found = None if is_before else journal.find(KEY)
    if num_others:
        dist.barrier()
    if is_before:
        return []
    owners = [[1, 2], [0]][:size] if size > 1 else [[2, 0, 1]]
    responses = found.completions.to_owners(owners, group)
    sent = [(row.token_ids.tolist(), row.logprobs.tolist(), row.finish_reason) for row in responses]
    return [found.completions.held_indices, list(found.completions.held.texts), sent]


@pytest.mark.parametrize(("before", "after", "num_others"), [(2, 1, 0), (1, 2, 0), (2, 2, 1)])
def test_the_parts_of_some_ranks_are_read_by_other_ranks_and_reach_those_that_train_on_them(
    tmp_path, before, after, num_others
):
    run_ranks(_restored, before + num_others, tmp_path, True, num_others)
    assert len(list(tmp_path.glob("step_000003.000000.*.npz"))) == before
    rows = [(list(one.token_ids), list(one.logprobs), one.finish_reason) for one in COMPLETIONS]
    texts = [one.text for one in COMPLETIONS]
    expected = {
        (2, 1): [[[0, 1, 2], texts, [rows[2], rows[0], rows[1]]]],
        (1, 2): [[[0, 1, 2], texts, [rows[1], rows[2]]], [[], [], [rows[0]]]],
        (2, 2): [[[0, 2], [texts[0], texts[2]], [rows[1], rows[2]]], [[1], [texts[1]], [rows[0]]]],
    }
    found = run_ranks(_restored, after + num_others, tmp_path, False, num_others)
    assert found == [[]] * num_others + expected[before, after]


def test_a_record_of_a_version_without_parts_is_read_by_the_first_rank(one_rank):
    head = {
        "key": {"step": 3, "weight_version": 2, "asked": "a", "lineage": "b"},
        "made": {},
        "grades": None,
        "texts": [one.text for one in COMPLETIONS],
        "versions": [2, 2, 2],
        "seeds": [one.seed for one in COMPLETIONS],
    }
    stream = io.BytesIO()
    np.savez(
        stream,
        head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        lengths=np.array([2, 1, 3], dtype=np.int32),
        token_ids=np.array([5, 6, 7, 8, 9, 1], dtype=np.int32),
        logprobs=np.concatenate([np.array(one.logprobs, dtype=np.float32) for one in COMPLETIONS]),
        stopped=np.array([1, 1, 1], dtype=np.int8),
        old_logprobs=np.arange(6, dtype=np.float32),
    )
    found, _ = read_record(head_from(stream.getvalue()), lambda name: None, None)
    assert (found.key, list(found.completions.held)) == (KEY, COMPLETIONS)
    assert found.columns["old_logprobs"].values.tolist() == list(range(6))


def test_a_whole_part_of_another_attempt_is_not_taken_for_this_ones():
    part = _record().own_part
    _, digest = part.to_bytes()
    others = replace(part, token_ids=[row + 1 for row in part.token_ids])
    with pytest.raises(ValueError, match="its content is another one"):
        read_part(io.BytesIO(others.to_bytes()[0]), digest)


def _found_in(folder: Path) -> list:
    """What the journal answers to the same key, to others, and to damage; and the messages."""
    dist.init_process_group("gloo")
    messages: list[str] = []
    journal = Journal(folder, dist.group.WORLD)
    with messages_to(messages.append, is_first_rank=True):
        answers = [journal.find(KEY)]
        journal.write(_record())
        answers.append(journal.find(KEY))
        for other in ({"weight_version": 1}, {"request_digest": "c"}, {"settings_digest": "c"}):
            answers.append(journal.find(replace(KEY, **other)))
        for path in (folder / "step_000003.npz", folder / "step_000003.000000.00000.npz"):
            whole = path.read_bytes()
            flipped = bytearray(whole)
            flipped[len(whole) // 2] ^= 4
            for damaged in (whole[:-40], bytes(flipped), b"", b"PK"):
                path.write_bytes(damaged)
                answers.append(journal.find(KEY))
            path.write_bytes(whole)
        path.unlink()
        answers.append(journal.find(KEY))
    destroy_mesh()
    return [None if answer is None else list(answer.completions.held) for answer in answers], messages


def test_a_journal_that_is_damaged_or_anothers_is_ignored_with_a_message(tmp_path):
    ((answers, messages),) = run_ranks(_found_in, 1, tmp_path)
    assert answers == [None, COMPLETIONS, *[None] * 12]
    assert "goes on from the journal" in messages[0]
    assert all("step_000003.npz is not used: it belongs to other" in line for line in messages[1:4])
    assert all("step_000003.npz is not used: it is no whole record" in line for line in messages[4:8])
    assert all("step_000003.npz is not used: a part of it is missing or damaged" in line for line in messages[8:])
    assert len(messages) == 13


def test_a_journal_forgets_what_a_checkpoint_holds_and_a_full_disk_ends_nothing(tmp_path, caplog, one_rank):
    journal = Journal(tmp_path, None)
    with installed(Faults.parse("fail@journal.write#4", 0)):
        for step in (1, 2, 3, 4):
            journal.write(replace(_record(), key=replace(KEY, step=step)))
    heads = sorted(path.name for path in tmp_path.iterdir() if path.name.count(".") == 1)
    assert heads == [f"step_{step:06d}.npz" for step in (1, 2, 3)]
    (message,) = caplog.messages
    assert "journal of step 4 could not be written (No space left on device)" in message
    journal.delete(2)
    assert sorted(path.name for path in tmp_path.iterdir())[:2] == ["step_000003.000000.00000.npz", "step_000003.npz"]
    (tmp_path / ".step_000003.000000.00001.npz.77.tmp").write_bytes(b"of a rank that was killed")
    journal.delete(None)
    assert list(tmp_path.iterdir()) == []


def test_grades_and_further_rounds_leave_the_tokens_that_are_on_disk_alone(tmp_path, one_rank):
    journal, record = Journal(tmp_path, None), replace(_record(), grades=None, columns={})
    journal.write(record)
    (part,) = tmp_path.glob("step_000003.000000.*")
    before = part.stat().st_mtime_ns
    record.grades = _record().grades
    journal.write(record)
    more = SpreadCompletions.alone(Completions.of(COMPLETIONS[:1]))
    record.completions = SpreadCompletions.joined([record.completions, more])
    journal.write(record)
    assert part.stat().st_mtime_ns == before and (tmp_path / "step_000003.000003.00000.npz").is_file()
    found = Journal(tmp_path, None).find(KEY)
    assert list(found.completions.held) == [*COMPLETIONS, COMPLETIONS[0]] and not found.is_graded


def _resumed_after(fault: str, overrides: list[str], remade: Path | None = None) -> tuple[bool, int, int]:
    """Whether the run with the fault came to its end; how many samples were drawn and graded when it was resumed.

    remade: a model that gets other weights in between.
    """
    os.environ["SIMPLERL_FAULTS"] = fault
    is_done = start_training(load(overrides, world_size=1))
    os.environ["SIMPLERL_FAULTS"] = ""
    if remade is not None:
        weights = {name: tensor * 1.01 for name, tensor in load_file(remade / "model.safetensors").items()}
        save_file(weights, remade / "model.safetensors", metadata={"format": "pt"})
    drawn, graded = [], []
    config = load(overrides, world_size=1)
    with join_world(config) as world, open_run(config, world, time.monotonic()) as run:
        generate, grade = run.roles.engine.generate, run.roles.grader.grade
        run.roles.engine.generate = lambda *given: drawn.extend(given[2]) or generate(*given)
        run.roles.grader.grade = lambda items: graded.extend(items) or grade(items)
        train(run)
    return is_done, len(drawn), len(graded)


@pytest.mark.parametrize(
    ("point", "drawn", "graded"), [("rollout", 16, 16), ("reward", 0, 16), ("old_logprobs", 0, 0)], ids=str
)
def test_a_resumed_step_is_neither_sampled_nor_graded_again(tmp_path, data, point, drawn, graded):
    overrides = [*SMALL, *data, "trainer.max_steps=1", "trainer.eval_every=0", "data.eval_path=null"]
    run_ranks(train_here, 1, [*overrides, f"trainer.run_dir={tmp_path / 'whole'}"])
    fault = f"signal@{point}#1,name=TERM"
    found = run_ranks(_resumed_after, 1, fault, [*overrides, f"trainer.run_dir={tmp_path / 'stopped'}"])
    assert found == [(False, drawn, graded)]
    assert books(tmp_path / "stopped") == books(tmp_path / "whole")
    assert list((tmp_path / "stopped/journal").iterdir()) == []


def test_samples_of_a_model_that_was_made_anew_at_its_path_are_not_taken(tmp_path, data):
    overrides = [*SMALL, *data, "trainer.max_steps=1", "trainer.eval_every=0", "data.eval_path=null"]
    overrides += [f"trainer.run_dir={tmp_path}"]
    found = run_ranks(_resumed_after, 1, "signal@old_logprobs#1,name=TERM", overrides, tmp_path / "base")
    assert found == [(False, 16, 16)]
