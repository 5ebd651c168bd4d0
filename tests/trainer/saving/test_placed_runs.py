"""Whole runs whose roles live apart: stopped in the middle of steps, resumed in other placements, killed anywhere."""

import json
import os
from pathlib import Path

import pytest

from nemo_simplerl.config.load import load
from nemo_simplerl.trainer.start import start_training
from support.ranks import run_ranks
from support.small_run import SMALL, assert_same_state, books

TP2 = ["actor.tensor_model_parallel_size=2"]  # the critic's too
SHARED = (2, [])
CRITIC_APART = (4, ["placement.actor=0-1", "placement.critic=2-3", "placement.engine=0-1"])
ALL_APART = (5, ["placement.actor=0-1", "placement.critic=2-3", "placement.engine=4"])

# Where each process of the run lives, what stops it, and how far it has come then, in updates of all roles.
_PROCESSES = [
    (SHARED, "signal@actor.update#2,rank=1,name=TERM", (1, 3)),
    (CRITIC_APART, "signal@critic.update#2,rank=3,name=TERM", (2, 3)),  # the actor's updates of the step are made
    (SHARED, "signal@rollout#1,rank=0,name=TERM", (2, 3)),  # before anything new is done
    (ALL_APART, "signal@actor.update#1,rank=1,name=TERM", (3, 2)),
    (CRITIC_APART, "signal@refit#2,rank=0,name=TERM", (3, 4)),  # told to all once every update is made
    (ALL_APART, "", None),
]


def _train(overrides: list[str], faults: str) -> bool:
    os.environ["SIMPLERL_FAULTS"] = faults
    return start_training(load(overrides, world_size=int(os.environ["WORLD_SIZE"])))


def _overrides(run_dir: Path, data: list[str], places: list[str]) -> list[str]:
    return [*SMALL, *data, *TP2, *places, "trainer.save_every=2", f"trainer.run_dir={run_dir}"]


@pytest.mark.slow
def test_a_run_stopped_within_its_steps_goes_on_in_other_placements_to_the_same_end(tmp_path, data):
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    assert run_ranks(_train, SHARED[0], _overrides(alone, data, SHARED[1]), "") == [True] * SHARED[0]
    for (ranks, places), fault, stopped_at in _PROCESSES:
        ended = run_ranks(_train, ranks, _overrides(moved, data, places), fault)
        assert ended == [stopped_at is None] * ranks
        if stopped_at is not None:
            told = json.loads((moved / "stopped.json").read_text())
            assert (told["step"], told["updates_in_step"], told["reason"]) == (*stopped_at, "SIGTERM")
    assert books(moved) == books(alone)
    assert_same_state(alone, moved)
    messages = (moved / "messages.jsonl").read_text()
    assert "saved by TP2 x PP1 x DP1 and continued by actor TP2 x PP1 x DP1 on ranks 0-1, critic TP2" in messages
    for role in ("actor", "critic"):
        weights = [(path / "hf" / role / "model.safetensors").read_bytes() for path in (alone, moved)]
        assert weights[0] == weights[1]
