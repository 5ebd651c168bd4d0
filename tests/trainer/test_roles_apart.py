"""A run whose roles live on ranks of their own is the run that it is on shared ranks, and stops and goes on like it."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from nemo_simplerl.config.load import load
from nemo_simplerl.trainer.open_run import open_run
from nemo_simplerl.trainer.setup.world import join_world
from support.forked_runs import different, problems_in, start
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


def _grading_workers(overrides: list[str]) -> int:
    """Processes that grade, started by this rank, once the run is ready to train."""
    config = load(overrides, world_size=int(os.environ["WORLD_SIZE"]))
    with join_world(config) as world, open_run(config, world, time.monotonic()):
        children = psutil.Process().children(recursive=True)
        return sum("nemo_simplerl.reward.serving.worker" in child.cmdline() for child in children)


def test_only_ranks_with_an_engine_keep_graders(problems, tmp_path):
    overrides = [*SMALL, *problems, "placement.engine=1", "reward.num_workers=1", f"trainer.run_dir={tmp_path / 'run'}"]
    assert run_ranks(_grading_workers, 2, overrides) == [0, 1]


APART = ["placement.critic=1", "placement.engine=2", "trainer.max_steps=3", "trainer.save_every=0"]
# Where a signal at the second visit to a point, on the rank of one role, stops all: the step, and the updates made of
# it. The others finish theirs: two of the actor, and two of the critic.
STOPS = {"critic.update": (1, 3), "actor.update": (1, 3), "refit": (1, 4)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("apart")
    assert start(folder / "alone", [*problems_in(folder), *APART], 3) == [0] * 3
    return folder / "alone"


@pytest.mark.parametrize(
    "point", ["critic.update", *(pytest.param(point, marks=pytest.mark.long) for point in ("actor.update", "refit"))]
)
def test_a_signal_on_the_rank_of_one_role_stops_all_and_the_run_goes_on_to_the_same_bytes(alone, point, tmp_path):
    run_dir, words = tmp_path / "run", [*problems_in(alone.parent), *APART]
    assert start(run_dir, words, 3, f"signal@{point}#2,name=TERM") == [os.EX_TEMPFAIL] * 3
    facts = json.loads((run_dir / "stopped.json").read_text())
    assert (facts["step"], facts["updates_in_step"], facts["reason"]) == (*STOPS[point], "SIGTERM")
    assert start(run_dir, words, 3) == [0] * 3
    assert different(alone, run_dir) == []
