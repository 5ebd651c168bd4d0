"""Packed passes give what padded ones give: log-probabilities, values, losses and gradients, in every layout."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from megatron.core.distributed import finalize_model_grads

from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.model.network import pipeline
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.trainer.groups import Rollout
from nemo_simplerl.trainer.learners.actor import objective_of
from nemo_simplerl.trainer.learners.minibatches import mini_batches
from nemo_simplerl.trainer.loop import ppo_step
from nemo_simplerl.trainer.warm_start.run import sft_loss
from support.ranks import run_ranks
from support.spread import held_by_first
from support.tiny import save_hf_model, scripted_roles

LAYOUTS = {
    "TP1": (1, {}),
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "TP2 with sequence parallel": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "DP2": (2, {}),
    "DP2 that reduces while it computes": (2, {"overlap_grad_reduce": True}),  # updates differ in micro-batches
    "TP1 with recomputation": (1, {"recompute_granularity": "full"}),
}
# Two sequences or three to a row; the longest alone is longer than the smaller one.
PACKED = {"micro_batch_tokens": 24, "forward_micro_batch_tokens": 61}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_hf_model(tmp_path_factory.mktemp("base") / "model", tied=True))


def _prompts() -> list[Prompt]:
    rng = random.Random(3)
    tokens = [tuple(rng.choices(range(131), k=3 + 5 * i)) for i in range(4)]
    return [Prompt(Problem(str(i), f"question {i}", str(i), None, None), "", ids) for i, ids in enumerate(tokens)]


def _two_steps(folder: str, actor: dict) -> list[dict[str, float]]:
    with scripted_roles(folder, actor, {"loss_aggregation": "seq_mean"}) as roles:
        roles.refit(0)
        return [ppo_step(step, _prompts(), roles)[0] for step in (1, 2)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_steps_in_packed_rows_have_the_metrics_of_padded_ones(model, layout):
    world_size, actor = LAYOUTS[layout]
    (padded, *_), (packed, *_) = (run_ranks(_two_steps, world_size, model, actor | sizes) for sizes in ({}, PACKED))
    for step, (got, wanted) in enumerate(zip(packed, padded, strict=True), 1):
        assert got.keys() == wanted.keys()
        for key in wanted:
            assert got[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-5), (step, key)


def _gradients(folder: str, layout: dict) -> list[float]:
    """Largest difference between gradients of packed and padded passes over the largest gradient, of all losses."""
    with scripted_roles(folder, layout, {}) as roles:
        roles.engine.weight_version = 0
        prompts, mesh = _prompts(), roles.mesh
        sampled = roles.engine.generate(None, roles.sampling, random.Random(5).sample(range(1000), 8))
        completions = held_by_first(sampled, roles.mesh.rank)
        grades = [Grade("correct", "ok", 0.0), Grade("incorrect", "ok", 0.0)] * 4
        batch = roles.batch(Rollout(prompts, completions, grades, [1.0, -0.5] * 4), 1)
        noise_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(mesh.dp_rank))
        columns = {"old_logprobs_BT": noise_BT - 5.0, "advantages_BT": noise_BT, "gate_weights_BT": batch.mask_BT}
        columns |= {"old_values_BT": noise_BT * 0.1, "returns_BT": noise_BT, "ref_logprobs_BT": noise_BT.flip(0) - 5.0}
        actor, critic = roles.actor, roles.estimator.critic

        def language_loss(*args):
            return sft_loss(actor.learner.gpt, *args, actor.hf["vocab_size"], mesh)

        def loss_under(**algo):
            changed = copy.copy(actor)
            changed.algo = replace(actor.algo, **algo)
            changed.objective = objective_of(changed.algo)
            return changed._loss

        found = []
        kl = {"kl_in": "loss", "kl_coef": 0.1, "kl_estimator": "k3"}
        for learner, sizes, loss in (
            (actor.learner, actor.config, actor._loss),
            (actor.learner, actor.config, loss_under(ratio_level="sequence", ratio_eps_high=0.9, **kl)),
            (actor.learner, actor.config, loss_under(policy_loss="cispo", positive_nll_coef=0.5)),
            (actor.learner, actor.config, language_loss),
            (critic.learner, critic.config, critic._loss),
        ):
            padded, packed = (
                _gradient(learner, batch, replace(sizes, **changes), loss, columns) for changes in ({}, PACKED)
            )
            found.append(float((padded - packed).abs().max() / padded.abs().max()))
        return found


def _gradient(learner, batch, sizes, loss, columns) -> torch.Tensor:
    minis = mini_batches(
        batch, sizes, aggregation="token_mean", epochs=1, mesh=learner.mesh, weigh_correct=True, **columns
    )
    mini = next(minis)
    assert all(micro.is_packed == (sizes.micro_batch_tokens is not None) for micro in mini)
    learner.model.zero_grad_buffer()
    pipeline.forward_backward(learner.model, mini, loss, learner.mesh)
    finalize_model_grads([learner.model], pg_collection=learner.mesh.collection)
    return torch.cat([param.main_grad.flatten().clone() for param in learner.gpt.parameters()])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "TP1 with recomputation"])
def test_gradients_of_packed_rows_are_those_of_padded_ones(model, layout):
    world_size, changes = LAYOUTS[layout]
    for found in run_ranks(_gradients, world_size, model, changes):
        assert max(found) < 1e-5, found
