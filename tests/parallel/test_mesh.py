"""Meshes over all ranks and over some, without Megatron's globals."""

import os
import time
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.pipeline import TokenBatch
from nemo_simplerl.parallel.exchange import exchange
from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.parallel.mesh import build_mesh, destroy_mesh, join, leave_together, mesh_over
from support.ranks import run_ranks
from support.tiny import learner_of, megatron_globals, save_hf_model, small_config

LAYOUTS = {
    "TP2 with sequence parallel and the distributed optimizer": {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "use_distributed_optimizer": True,
    },
    "PP2": {"pipeline_model_parallel_size": 2},
}


def _last_two_ranks_learn(folder: str, actor: dict) -> tuple[list, list, list[str]]:
    """Metrics of two updates of a value model and its weights, where this rank is one of the last two."""
    build_mesh(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60)
    config = small_config(folder, actor, {})
    layout, world_size = config.actor, dist.get_world_size()
    ranks = range(world_size - 2, world_size)
    grid = Grid(ranks, layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size)
    mesh = mesh_over(grid, timeout_s=33)
    metrics, weights = [], []
    if not mesh.is_member:
        assert dist.get_rank() not in ranks
        assert mesh.role.size() == mesh.data.size() == 1
    else:
        tokens_BS = torch.arange(24).view(2, 12)
        optim = replace(layout.optim, lr=1e-3)
        learner = learner_of(config, folder, optim, mesh, total_updates=2, critic_seed=1)

        def loss(hidden_SBH, micro):
            square = head.values(learner.gpt, hidden_SBH, micro).square().mean()
            return square, {"square": square.detach()}

        metrics = [learner.update([TokenBatch(tokens_BS)], loss) for _ in range(2)]
        weights = [param.detach().clone() for param in learner.gpt.parameters()]
        cpu = torch.device("cpu")
        assert mesh.data._get_backend(cpu).options._timeout == timedelta(seconds=33)
    left = megatron_globals()
    leave_together()
    destroy_mesh()
    return metrics, weights, left


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mesh_of_some_ranks_learns_the_same_while_another_rank_does_nothing(tmp_path, layout):
    folder = str(save_hf_model(tmp_path / "model"))
    idle, *apart = run_ranks(_last_two_ranks_learn, 3, folder, LAYOUTS[layout])
    whole = run_ranks(_last_two_ranks_learn, 2, folder, LAYOUTS[layout])
    assert idle[:2] == ([], [])
    for (metrics, weights, left), (expected, expected_weights, _) in zip(apart, whole, strict=True):
        assert metrics == expected and metrics[1]["square"] != metrics[0]["square"] and metrics[0]["grad_norm"] > 0
        assert all(map(torch.equal, weights, expected_weights))
        assert left == []


def _waits_for_a_slow_rank(seconds: float) -> float:
    """A number that rank 1 sends after some time, longer than ranks have to join."""
    join(seconds, overlaps=False, longest_wait_s=60)
    if dist.get_rank() == 1:
        time.sleep(1.5 * seconds)
    sizes = {1: [(np.float64, 1)]} if dist.get_rank() == 0 else {}
    sent = {0: lambda: [np.array([7.0])]} if dist.get_rank() == 1 else {}
    received = exchange(sent, sizes, dist.group.WORLD, "rows")
    leave_together()
    destroy_mesh()
    return float(received[1][0][0]) if received else 0.0


def test_ranks_may_wait_longer_for_each_other_than_they_have_to_join():
    assert run_ranks(_waits_for_a_slow_rank, 2, 4.0) == [7.0, 0.0]


def _joins_alone() -> None:
    os.environ["WORLD_SIZE"] = "2"
    with pytest.raises(dist.DistError):
        join(1.0, overlaps=False, longest_wait_s=60)


def test_a_rank_that_never_comes_ends_the_others_in_the_time_to_join():
    run_ranks(_joins_alone, 1, timeout_s=30)
