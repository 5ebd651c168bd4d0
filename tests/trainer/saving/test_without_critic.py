"""Checkpoints without a critic, and what one with a critic is to a run that trains none."""

import json
import os
import signal
from pathlib import Path

from support.forked_runs import different, problems_in, start

LENGTH = ["trainer.max_steps=3", "trainer.save_every=1", "trainer.eval_every=0"]
NO_CRITIC = "algo.advantage=group"
STOPPED = os.EX_TEMPFAIL


def test_a_run_without_a_critic_that_is_stopped_and_killed_within_steps_ends_as_one_left_alone(tmp_path):
    run_dir, words = tmp_path / "run", [*problems_in(tmp_path), *LENGTH, NO_CRITIC]
    assert start(tmp_path / "alone", words, 1) == [0]
    assert start(run_dir, words, 1, "signal@actor.update#4,name=TERM") == [STOPPED]
    assert (run_dir / "checkpoints/step_000002_update_0001").is_dir()
    assert start(run_dir, words, 1, "kill@actor.update#3") == [-signal.SIGKILL]
    # No setting of a critic is read, so another one is no other run.
    assert start(run_dir, [*words, "critic.global_batch_size=7", "critic.optim.lr=1"], 1) == [0]
    assert different(tmp_path / "alone", run_dir) == []
    assert json.loads((run_dir / "checkpoints/step_000003/manifest.json").read_text())["updates"] == {"actor": 6}
    assert not list(run_dir.glob("**/critic*")) and "critic/" not in (run_dir / "metrics.jsonl").read_text()
    assert "algo.advantage=group trains no critic" in (run_dir / "messages.jsonl").read_text()


def test_a_checkpoint_with_a_critic_is_refused_without_one_unless_its_critic_may_be_left_aside(tmp_path):
    run_dir, words = tmp_path / "run", [*problems_in(tmp_path), *LENGTH]
    asked = "trainer.resume_allow=[algo.advantage]"
    assert start(run_dir, words, 1, "signal@actor.update#4,name=TERM") == [STOPPED]
    assert start(run_dir, [*words, NO_CRITIC, asked], 1) == [2]
    assert "in the middle of a step that trains a critic" in _output(run_dir)
    (run_dir / "checkpoints/latest").write_text("step_000001\n")
    (run_dir / "config.yaml").unlink()  # which knew of the critic too
    assert start(run_dir, [*words, NO_CRITIC], 1) == [2]
    assert "step_000001 holds a critic, and algo.advantage=group trains none" in _output(run_dir)
    assert start(run_dir, [*words, NO_CRITIC, asked], 1) == [0]
    assert "step_000001 is left aside: algo.advantage=group trains none" in _output(run_dir)
    assert not (run_dir / "checkpoints/step_000003/critic").exists()
    assert start(run_dir, [*words, "trainer.max_steps=4", "trainer.resume_allow=[algo,trainer.max_steps]"], 1) == [2]
    assert "step_000003 was saved by a run without a critic" in _output(run_dir)


def _output(run_dir: Path) -> str:
    return " ".join((run_dir / "output.txt").read_text().split())
