"""The first rollout of a run: the same to the bit on any number of ranks and in every layout of the trainer."""

import os
import time

import pytest
import torch.distributed as dist

from nemo_simplerl.config.load import load
from nemo_simplerl.trainer.open_run import open_run
from nemo_simplerl.trainer.setup.world import join_world
from support.ranks import run_ranks
from support.small_run import SMALL
from support.spread import whole

LAYOUTS = {
    "TP2": (2, ["actor.tensor_model_parallel_size=2"]),
    "PP2": (2, ["actor.pipeline_model_parallel_size=2"]),
    "TP2 x PP2": (4, ["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2"]),
}


def _first_rollout(overrides: list[str]) -> list:
    """Completions of step 1: token ids, log-probabilities, texts."""
    config = load(overrides, world_size=int(os.environ["WORLD_SIZE"]))
    with join_world(config) as world, open_run(config, world, time.monotonic()) as run:
        run.roles.refit(version=0)
        run.roles.begin(prompts := run.next_prompts(), 1)
        return whole(run.roles.generate(prompts, 1), dist.group.WORLD)


@pytest.fixture(scope="module")
def rollout_of(tmp_path_factory, data):
    def run(world_size: int, layout: list[str]) -> list[list]:
        folder = tmp_path_factory.mktemp("run")
        # Units of two prompts: six of them for the ranks to share.
        sizes = ["data.rollout_batch_size=12", "rollout.max_batch_size=8"]
        return run_ranks(_first_rollout, world_size, [*SMALL, *data, *sizes, f"trainer.run_dir={folder}", *layout])

    return run


@pytest.fixture(scope="module")
def one_rank(rollout_of):
    (completions,) = rollout_of(1, [])
    assert len({completion.token_ids for completion in completions}) == 48, "different seeds differ"
    return completions


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_has_the_completions_of_a_run_on_one_rank(rollout_of, one_rank, layout):
    for completions in rollout_of(*LAYOUTS[layout]):
        assert completions == one_rank
