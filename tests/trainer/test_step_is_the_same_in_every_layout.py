"""One PPO step from the same weights and completions: the same numbers in every layout and micro-batch size."""

import random
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from nemo_simplerl.algo.advantages import whiten
from nemo_simplerl.algo.rewards import token_rewards
from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.sharding.export import hf_buckets
from nemo_simplerl.reward.grade import reward_of
from nemo_simplerl.trainer.estimators import Estimator, build_estimator
from nemo_simplerl.trainer.groups import Rollout
from nemo_simplerl.trainer.loop import ppo_step
from nemo_simplerl.trainer.roles import Roles
from support.ranks import run_ranks
from support.tiny import save_hf_model, scripted_roles

WITHOUT_CRITIC = ("group", "rloo", "reinforce_pp", "reinforce_pp_baseline")
LAYOUTS = {
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "TP2 with sequence parallel": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "DP2": (2, {}),
    "DP2 with the distributed optimizer": (2, {"use_distributed_optimizer": True}),
    "DP2 that reduces while it computes": (2, {"overlap_grad_reduce": True, "micro_batch_size": 1}),
    "DP2 with both": (2, {"overlap_grad_reduce": True, "use_distributed_optimizer": True, "micro_batch_size": 1}),
    "PP2 x DP2 that reduces while it computes": (
        4,
        {"overlap_grad_reduce": True, "pipeline_model_parallel_size": 2, "micro_batch_size": 1},
    ),
    "TP2 x PP2": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
}


def _prompts() -> list[Prompt]:
    rng = random.Random(3)
    return [
        Prompt(Problem(str(i), f"question {i}", str(i), None, None), "", tuple(rng.choices(range(131), k=5 + i)))
        for i in range(4)
    ]


# The critic on the same ranks in a layout of its own.
CRITICS = {
    "DP2 beside an actor of TP2 with sequence parallel": (
        2,
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        {"tensor_model_parallel_size": 1, "global_batch_size": 2, "micro_batch_size": 1},
    ),
    "PP2 x DP2 beside an actor of DP4": (4, {"micro_batch_size": 1}, {"pipeline_model_parallel_size": 2}),
    "DP4 beside an actor of TP2 x PP2": (
        4,
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
        {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "micro_batch_size": 1},
    ),
}


def _steps(folder: str, actor: dict, algo: dict, critic: dict | None = None) -> list[dict[str, float]]:
    """The metrics of two steps with a critic and of one without, and a number of each estimator that has none."""
    with scripted_roles(folder, actor, algo, critic) as roles:
        roles.refit(0)
        with_critic = [ppo_step(step, _prompts(), roles)[0] for step in (1, 2)]
        estimators = {name: _without_critic(roles, name) for name in WITHOUT_CRITIC}
        roles.estimator = estimators["group"]
        without = ppo_step(3, _prompts(), roles)[0]
        return [*with_critic, without, {name: _checksum(roles, one) for name, one in estimators.items()}]


def _without_critic(roles: Roles, name: str) -> Estimator:
    algo = replace(roles.config.algo, advantage=name)
    return build_estimator(algo, len(_prompts()), roles.mesh, roles.step_state, lambda: None)


def _checksum(roles: Roles, estimator: Estimator) -> float:
    """The whitened advantages of the last step's samples, each times a number that its token decides, summed."""
    record = roles.step_state.record
    scores = [reward_of(grade.verdict, roles.config.reward) for grade in record.grades]
    batch = roles.batch(Rollout(_prompts(), record.completions, record.grades, scores), step=3)
    of_token_BT = batch.tokens_BS[:, 1:].float() / 131
    rewards_BT = token_rewards(batch.scores_B, of_token_BT, batch.mask_BT, kl_coef=0.1)
    advantages_BT = estimator.estimate(3, batch, rewards_BT).advantages_BT
    total = (whiten(advantages_BT, batch.loss_mask_BT, roles.mesh.data) * of_token_BT).double().sum()
    dist.all_reduce(total, group=roles.mesh.data)
    return float(total)


def _assert_same(found: list[dict], expected: list[dict], layout: str) -> None:
    for step, (got, wanted) in enumerate(zip(found, expected, strict=True), 1):
        assert got.keys() == wanted.keys()
        for key in wanted:
            if key.endswith(("ratio_deviation", "first_ratio_deviation")):
                assert got[key] < 1e-5, (layout, step, key)
            elif key != "refit/buckets":  # a bucket holds tensors of one stage
                assert got[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-6), (layout, step, key)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_hf_model(tmp_path_factory.mktemp("base") / "model", tied=True))


@pytest.fixture(scope="module")
def one_rank(model):
    return run_ranks(_steps, 1, model, {}, {})[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree_with_one_rank(model, one_rank, layout):
    world_size, actor = LAYOUTS[layout]
    for found in run_ranks(_steps, world_size, model, actor, {}):
        _assert_same(found, one_rank, layout)


@pytest.mark.parametrize("layout", CRITICS)
def test_a_critic_in_a_layout_of_its_own_agrees_with_one_rank(model, one_rank, layout):
    world_size, actor, critic = CRITICS[layout]
    sizes = {key: value for key, value in critic.items() if key == "global_batch_size"}
    (expected,) = run_ranks(_steps, 1, model, {}, {}, sizes) if sizes else (one_rank,)
    for found in run_ranks(_steps, world_size, model, actor, {}, critic):
        _assert_same(found, expected, layout)


def _five_steps(folder: str, critic: dict, placement: dict | None = None) -> tuple[list[dict[str, float]], list]:
    """Metrics of five steps of an actor of TP2, and the weights after them of the models that live on this rank."""
    with scripted_roles(folder, {"tensor_model_parallel_size": 2}, {}, critic, placement=placement) as roles:
        roles.refit(0)
        metrics = [ppo_step(step, _prompts(), roles)[0] for step in range(1, 6)]
        weights = [
            tensor.clone()
            for learner in roles.learners.values()
            for bucket in hf_buckets(learner.gpt, read_hf_config(folder), learner.mesh, 2**30)
            for _, tensor in bucket
        ]
        return metrics, weights


def test_a_critic_of_tp1_beside_an_actor_of_tp2_stays_close_over_five_steps(model):
    (shared, weights), _ = run_ranks(_five_steps, 2, model, {})
    for found, own_weights in run_ranks(_five_steps, 2, model, {"tensor_model_parallel_size": 1}):
        for got, expected in zip(found, shared, strict=True):
            assert got == pytest.approx(expected, abs=5e-4)
        assert max(float((own - other).abs().max()) for own, other in zip(own_weights, weights, strict=True)) < 1e-4


def test_roles_on_ranks_of_their_own_compute_what_they_compute_on_shared_ranks(model):
    """To the bit, where each keeps its layout: actor and critic of TP2, and an engine, on five ranks."""
    (shared, weights), _ = run_ranks(_five_steps, 2, model, {})
    found = run_ranks(_five_steps, 5, model, {}, {"critic": "2-3", "engine": 4})
    metrics, actor = found[0]
    for got, expected in zip(metrics, shared, strict=True):
        assert {key: value for key, value in got.items() if not key.startswith("time/")} == expected
    _, critic = found[2]
    assert len(actor) + len(critic) == len(weights)
    assert all(torch.equal(own, other) for own, other in zip([*actor, *critic], weights, strict=True))
    assert found[4][1] == []


@pytest.mark.parametrize(("unit", "size"), [("size", 1), ("size", 2), ("tokens", 40)])
def test_micro_batch_sizes_and_packed_rows_agree(model, one_rank, unit, size):
    sizes = {f"micro_batch_{unit}": size, f"forward_micro_batch_{unit}": size}
    (found,) = run_ranks(_steps, 1, model, sizes, {})
    _assert_same(found, one_rank, f"micro-batches of {size} {unit}")


# What the default leaves out, in one run: sums over a sequence, counts over right responses, bounds of their own.
OTHERS = {
    "loss_aggregation": "token_sum_over_max",
    "truncated": "mask",
    "entropy_bonus": 0.01,
    "ppo_epochs": 2,
    "kl_in": "loss",
    "kl_estimator": "k3",
    "kl_importance_weight": True,
    "ratio_level": "sequence",
    "ratio_eps_high": 0.28,
    "dual_clip": 3.0,
    "positive_nll_coef": 0.1,
}


def test_layouts_agree_in_the_other_variants_too(model):
    (expected,) = run_ranks(_steps, 1, model, {}, OTHERS)
    assert expected[1]["actor/kl_loss"] > 0 and expected[0]["actor/positive_nll"] > 0
    assert 0 == expected[1]["actor/dual_clip_fraction"] < expected[1]["actor/clip_fraction"]
    actor = {"tensor_model_parallel_size": 2, "micro_batch_tokens": 24, "forward_micro_batch_tokens": 61}
    for found in run_ranks(_steps, 4, model, actor, OTHERS):
        _assert_same(found, expected, "TP2 x DP2 in packed rows")
