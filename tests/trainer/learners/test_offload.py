"""Optimizer state that waits in host memory: gone between updates, back to the bit, and saved from where it waits."""

import contextlib
import os
from concurrent.futures import Future
from dataclasses import replace
from itertools import product

import pytest
import torch

from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.pipeline import TokenBatch
from nemo_simplerl.parallel.mesh import destroy_mesh, leave_together
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.optimizer_parts import inner_optimizers, moments_of, stepped_parts
from nemo_simplerl.trainer.setup.world import mesh_of
from support.ranks import run_ranks
from support.small_run import SMALL, assert_same_state, books, train_here
from support.tiny import learner_of, save_hf_model, small_config

OFFLOAD = "actor.offload_adam_states=true"
# The first checkpoint, of step 1, is still being written when the updates of step 2 are made.
SLOW_SAVE = "delay@checkpoint.write#2,seconds=4"


def train_with_faults(faults: str, overrides: list[str]) -> None:
    os.environ["SIMPLERL_FAULTS"] = faults
    train_here(overrides)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (1, []),
        pytest.param(
            2,
            ["actor.use_distributed_optimizer=true", "model.precision=bf16", "algo.ratio_tolerance=null"],
            marks=pytest.mark.long,
        ),
    ],
    ids=["one rank", "bf16, DP2 with the distributed optimizer"],
)
def test_a_run_whose_state_waits_outside_stops_and_resumes_to_the_end_of_one_whose_state_stays(
    tmp_path, data, world_size, layout
):
    stays, waits = tmp_path / "stays", tmp_path / "waits"
    first = [OFFLOAD, "trainer.stop_after_step=2", "trainer.save_every=1"]
    for run_dir, faults, more in ((stays, "", []), (waits, SLOW_SAVE, first), (waits, "", [OFFLOAD])):
        if more == [OFFLOAD]:
            (waits / "checkpoints/latest").write_text("step_000001\n")  # what was written slowly
        overrides = [*SMALL, f"trainer.run_dir={run_dir}", *data, *layout, *more]
        run_ranks(train_with_faults, world_size, faults, overrides)
    assert books(waits) == books(stays)
    assert_same_state(stays, waits)


def _states(learner: Learner) -> dict[int, torch.Tensor]:
    """Masters and moments, by identity."""
    return {
        id(tensor): tensor
        for inner in inner_optimizers(learner.optimizer)
        for param, stepped, _ in stepped_parts(inner)
        for tensor in (
            *moments_of(inner.optimizer, stepped).values(),
            *([stepped] if stepped.dtype != param.dtype else []),
        )
    }


def _gradient_bytes(learner: Learner) -> int:
    return sum(buffer.grad_data.untyped_storage().nbytes() for buffer in learner.model.buffers)


def _update_and_look(model: str) -> list[dict[str, object]]:
    found = []
    for precision, distributed, is_critic in product(("fp32", "bf16"), (False, True), (False, True)):
        config = small_config(model, {"use_distributed_optimizer": distributed}, {})
        config = replace(config, model=replace(config.model, precision=precision))
        mesh = mesh_of(config.actor, config.trainer.distributed_timeout_s)
        returned = []
        torch.cuda.empty_cache = lambda returned=returned: returned.append(True)
        learner = learner_of(
            config,
            model,
            config.actor.optim,
            mesh,
            total_updates=4,
            critic_seed=1 if is_critic else None,
            offload_adam_states=True,
        )

        def loss(hidden_SBH, micro, learner=learner):
            return head.output(learner.gpt, hidden_SBH).float().pow(2).mean(), {}

        micro = TokenBatch(torch.arange(24).view(2, 12))
        numbers = {"case": (precision, distributed, is_critic), "before": _gradient_bytes(learner)}
        with learner.optimizer_on_device():
            learner.update([micro], loss)
            inside = {key: tensor.data_ptr() for key, tensor in _states(learner).items()}
            numbers["during"] = _gradient_bytes(learner)
        outside = {key: tensor.data_ptr() for key, tensor in _states(learner).items()}
        numbers["after"] = _gradient_bytes(learner)
        numbers["moved"] = [outside[key] != inside[key] for key in inside]
        numbers["same tensors"] = inside.keys() == outside.keys()
        numbers["weights"] = sum(param.numel() for param in learner.gpt.parameters())
        with learner.optimizer_on_device():
            learner.update([micro], loss)
        again = [tensor.data_ptr() for tensor in _states(learner).values()]
        numbers["in the same place"] = sorted(again) == sorted(outside.values())
        numbers["returned"] = returned
        learner.offload.lend(Future())  # to a save that never ends: an error that ends the run does not wait for it
        with contextlib.suppress(MemoryError), learner.optimizer_on_device():
            raise MemoryError
        found.append(numbers)
        leave_together()
        destroy_mesh()
    return found


def test_between_updates_gradients_have_no_memory_and_the_state_is_elsewhere(tmp_path):
    (found,) = run_ranks(_update_and_look, 1, str(save_hf_model(tmp_path / "model", tied=True)))
    for numbers in found:
        assert (numbers["before"], numbers["after"]) == (0, 0), numbers
        assert numbers["during"] >= 4 * numbers["weights"], numbers
        assert numbers["same tensors"] and numbers["in the same place"], numbers
        assert len(numbers["moved"]) > 0 and all(numbers["moved"]), numbers
        assert len(numbers["returned"]) == 3, "when it is built and after each series of updates"
