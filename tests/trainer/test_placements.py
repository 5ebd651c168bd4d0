"""A run whose roles live on ranks of their own is the run that it is on shared ranks."""

import json
from pathlib import Path

import pytest

from support.ranks import run_ranks
from support.small_run import SMALL, assert_same_state, books, few_problems, train_here

# Each role keeps its layout: two tensor ranks for actor and critic.
SETTINGS = [*SMALL, "actor.tensor_model_parallel_size=2", "algo.kl_coef=0.01", "trainer.save_every=2"]
PLACEMENTS = {
    "critic apart": (4, ["placement.critic=2-3"]),
    "engine apart": (3, ["placement.engine=2"]),
    "all apart": (5, ["placement.critic=2-3", "placement.engine=4"]),
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> list[str]:
    return few_problems(tmp_path_factory.mktemp("problems"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory, problems) -> Path:
    run_dir = tmp_path_factory.mktemp("placements") / "shared"
    run_ranks(train_here, 2, [*SETTINGS, *problems, f"trainer.run_dir={run_dir}"])
    return run_dir


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_completions_metrics_and_weights_are_those_of_shared_ranks_to_the_bit(shared, problems, placement, tmp_path):
    world_size, keys = PLACEMENTS[placement]
    run_ranks(train_here, world_size, [*SETTINGS, *keys, *problems, f"trainer.run_dir={tmp_path / 'run'}"])
    assert books(tmp_path / "run") == books(shared)
    assert_same_state(tmp_path / "run", shared)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    of_roles = {"time/rollout", "time/reward", "time/values", "time/critic_update", "time/actor_update", "time/refit"}
    assert all(of_roles <= line.keys() for line in lines[1:])
