"""The record of a step and the journal that keeps it: exact, refused when damaged or another's, and used."""

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
from nemo_simplerl.data.batch import collate
from nemo_simplerl.parallel.mesh import destroy_mesh
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.trainer.guard.faults import Faults, installed
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.loop import train
from nemo_simplerl.trainer.open_run import open_run
from nemo_simplerl.trainer.saving.journal import Journal
from nemo_simplerl.trainer.saving.record import (
    StepKey,
    StepRecord,
    local_column_BT,
    record_from,
    response_tokens,
    whole_column,
)
from nemo_simplerl.trainer.setup.world import join_world
from nemo_simplerl.trainer.start import start_training
from support.ranks import run_ranks
from support.small_run import SMALL, books, train_here

KEY = StepKey(step=3, weight_version=2, request_digest="a", settings_digest="b")


def _completion(ids: list[int], text: str = "x") -> Completion:
    logprobs = tuple(torch.tensor([-0.1 * (i + 1) for i in range(len(ids))]).tolist())
    return Completion(tuple(ids), logprobs, text, "stop", 2, 2**62 + len(ids))


def _record() -> StepRecord:
    return StepRecord(
        key=KEY,
        completions=[_completion([5, 6], "\u03c0 = \ud800"), _completion([7]), _completion([8, 9, 1])],
        grades=[
            Grade("correct", "ok", 0.25),
            Grade("incorrect", "timeout", 5000.0, score=0.1 + 0.2, metrics={"z": 1 / 3, "a": 2.0}),
            Grade("no_answer", "crash", 0.1, error="\ud800 in the traceback"),
        ],
        columns={
            "values": np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=np.float32),
            "lengths": np.arange(6, dtype=np.float32),  # an estimator's own, named like an array of the completions
        },
        finished_updates={"critic": [{"loss": 0.1 + 0.2, "lr": 1e-5}], "actor": []},
    )


def test_a_record_comes_back_exactly():
    record = _record()
    found = record_from(record.to_bytes())
    assert (found.key, found.completions, found.grades, found.finished_updates) == (
        record.key,
        record.completions,
        record.grades,
        record.finished_updates,
    )
    assert found.columns.keys() == record.columns.keys()
    assert all(np.array_equal(found.columns[name], record.columns[name]) for name in record.columns)
    assert found.num_updates == 1
    assert record_from(StepRecord(KEY, completions=record.completions).to_bytes()).grades is None


def test_nothing_pickled_is_ever_read(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    np.savez(tmp_path / "evil.npz", head=np.array([Harm()], dtype=object))
    with pytest.raises(ValueError, match="no whole record of a step"):
        record_from((tmp_path / "evil.npz").read_bytes())
    assert not (tmp_path / "harm").exists()


def test_tokens_numbers_find_their_samples_again_in_any_layout():
    lengths = [2, 1, 3]
    whole = np.array([10, 11, 20, 30, 31, 32], dtype=np.float32)
    shares = [np.array([30, 31, 32, 10, 11], dtype=np.float32), np.array([20], dtype=np.float32)]
    assert np.array_equal(whole_column(shares, [[2, 0], [1]], lengths), whole)
    completions = _record().completions
    rows = [2, 1]
    batch = collate(
        [[1], [1, 2]],
        [completions[row] for row in rows],
        [0.0, 0.0],
        pad_id=0,
        truncated="penalize",
        overwrite_truncated_with_eos=None,
        device="cpu",
    )
    column_BT = local_column_BT(whole, rows, lengths, batch)
    assert column_BT.tolist() == [[30, 31, 32], [0, 20, 0]]
    assert response_tokens(column_BT, batch).tolist() == [30, 31, 32, 20]


def _found_in(folder: Path) -> list:
    """What the journal answers to the same key, to others, and to damage; and the messages."""
    dist.init_process_group("gloo")
    messages: list[str] = []
    journal = Journal(folder, is_writer=True)
    with messages_to(messages.append, is_first_rank=True):
        answers = [journal.find(KEY)]
        journal.write(_record())
        answers.append(journal.find(KEY))
        for other in ({"weight_version": 1}, {"request_digest": "c"}, {"settings_digest": "c"}):
            answers.append(journal.find(replace(KEY, **other)))
        path = folder / "step_000003.npz"
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        for damaged in (whole[:-40], bytes(flipped), b"", b"PK"):
            path.write_bytes(damaged)
            answers.append(journal.find(KEY))
    destroy_mesh()
    return [None if answer is None else answer.completions for answer in answers], messages


def test_a_journal_that_is_damaged_or_anothers_is_ignored_with_a_message(tmp_path):
    ((answers, messages),) = run_ranks(_found_in, 1, tmp_path)
    assert answers == [None, _record().completions, *[None] * 7]
    assert "goes on from the journal" in messages[0]
    assert all("step_000003.npz is not used: it belongs to other" in line for line in messages[1:4])
    assert all("step_000003.npz is not used: it is no whole record" in line for line in messages[4:])
    assert len(messages) == 8


def test_a_journal_forgets_what_a_checkpoint_holds_and_a_full_disk_ends_nothing(tmp_path, caplog):
    journal = Journal(tmp_path, is_writer=True)
    with installed(Faults.parse("fail@journal.write#4", 0)):
        for step in (1, 2, 3, 4):
            journal.write(replace(_record(), key=replace(KEY, step=step)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:06d}.npz" for step in (1, 2, 3)]
    (message,) = caplog.messages
    assert "journal of step 4 could not be written (No space left on device)" in message
    journal.delete(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003.npz"]
    Journal(tmp_path, is_writer=False).write(_record())
    journal.delete(None)
    assert list(tmp_path.iterdir()) == []


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
    with join_world(config) as mesh, open_run(config, mesh, time.monotonic()) as run:
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
