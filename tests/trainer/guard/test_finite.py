"""NaN and infinity: an update with one is left out on all ranks to the bit and saved, up to a limit of such updates."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.trainer.groups import Rollout
from nemo_simplerl.trainer.guard.finite import BadUpdates, delete_bad_updates, read_micro_batches, require_finite
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.logging.metrics import update_metrics
from support.ranks import run_ranks
from support.small_run import SMALL, few_problems, leave_bad_updates, train_here
from support.spread import held_by_first
from support.tiny import save_hf_model, scripted_roles

LAYOUTS = {
    "one rank": (1, {}),
    "DP2": (2, {}),
    "DP2 with the distributed optimizer": (2, {"use_distributed_optimizer": True}),
    "TP2": (2, {"tensor_model_parallel_size": 2}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}
ALONE = SimpleNamespace(device=torch.device("cpu"), data=None, role=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_hf_model(tmp_path_factory.mktemp("base") / "model", tied=True))


def test_an_update_left_out_is_counted_and_not_averaged():
    made = {"policy_loss": 1.0, "ratio_deviation_max": 0.5, "grad_norm": 2.0, "lr": 0.1, "skipped": 0.0}
    metrics = update_metrics("actor", [made, {"lr": 0.2, "skipped": 1.0}, made | {"policy_loss": 3.0, "lr": 0.3}])
    assert metrics["actor/policy_loss"] == 2.0 and metrics["actor/grad_norm_max"] == 2.0
    assert (metrics["actor/skipped_updates"], metrics["actor/lr"]) == (1.0, 0.3)
    assert "actor/skipped" not in metrics
    # A run that goes on in the middle of a step without a term of the loss: its mean over the step is none.
    assert "actor/kl_loss" not in update_metrics("actor", [made | {"kl_loss": 0.1}, made])
    alone = update_metrics("actor", [{"lr": 0.2, "skipped": 1.0}])
    assert alone == {"actor/lr": 0.2, "actor/skipped_updates": 1.0}


def _batch(roles):
    """Eight samples of four prompts, in updates of four."""
    roles.engine.weight_version = 0
    prompts = [Prompt(Problem(str(i), "", "1", None, None), "", tuple(range(1, 6 + i))) for i in range(4)]
    sampled = roles.engine.generate(None, roles.sampling, random.Random(5).sample(range(1000), 8))
    completions = held_by_first(sampled, roles.mesh.rank)
    grades = [Grade("correct", "ok", 0.0), Grade("incorrect", "ok", 0.0)] * 4
    return roles.batch(Rollout(prompts, completions, grades, [1.0, -0.5] * 4), 1)


def _state(learner: Learner) -> list[torch.Tensor]:
    """Weights, main weights, Adam's moments and step counts, copied."""
    found = [param.detach().clone() for param in learner.gpt.parameters()]
    for inner in getattr(learner.optimizer, "chained_optimizers", [learner.optimizer]):
        for param, moments in inner.optimizer.state.items():
            found += [param.detach().clone(), *(value.clone() for _, value in sorted(moments.items()))]
    return found


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def _poisoned(model: str, layout: dict, folder: str) -> dict:
    """Updates of a good, a bad and a good rollout. With DP2 only the second rank's samples are bad."""
    with scripted_roles(model, layout, {}) as roles:
        critic, batch, mesh = roles.estimator.critic, _batch(roles), roles.mesh
        learner = critic.learner
        learner.bad_updates = BadUpdates(Path(folder), "critic", 1, 2, 2)
        zeros_BT, returns_BT = torch.zeros_like(batch.mask_BT), batch.mask_BT.clone()
        nan_BT = torch.full_like(zeros_BT, torch.nan) if mesh.dp_rank == mesh.dp_size - 1 else returns_BT
        first = critic.update(batch, zeros_BT, returns_BT)
        before = _state(learner)
        bad = critic.update(batch, zeros_BT, nan_BT)
        untouched = _same(before, _state(learner))
        good = critic.update(batch, zeros_BT, returns_BT)
        moved = not _same(before, _state(learner))
        stopped = ""
        try:
            critic.update(batch, zeros_BT, nan_BT)
        except RuntimeError as error:
            stopped = str(error)
        micro_batches = read_micro_batches(Path(folder) / f"step_000002_critic_1_rank{mesh.rank}.pt")
        # On the last stage alone is there a value to replay.
        replayed = learner.forward_only(micro_batches, lambda output, micro: _loss(critic, output, micro))
        return {
            "skipped": [[update["skipped"] for update in updates] for updates in (first, bad, good)],
            "bad": bad,
            "counts": (learner.updates, untouched, moved),
            "stopped": stopped,
            "replayed": [bool(loss.isfinite()) for loss in replayed],
            "dp_rank": mesh.dp_rank,
        }


def _loss(critic, output_SB1, micro):
    return critic._loss(output_SB1, micro)[0].reshape(1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_update_leaves_no_trace_but_its_file_which_shows_it_again(model, tmp_path, layout):
    world_size, sizes = LAYOUTS[layout]
    for found in run_ranks(_poisoned, world_size, model, sizes, str(tmp_path / "bad")):
        assert found["skipped"] == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
        assert [set(update) for update in found["bad"]] == [{"lr", "skipped"}] * 2
        assert found["counts"] == (7, True, True)  # the seventh is the one too many
        assert "step 4: critic update 1 was left out" in found["stopped"]
        assert "3 updates, and trainer.max_bad_updates=2" in found["stopped"]
        is_bad = found["dp_rank"] == (1 if layout.startswith("DP2") else 0)
        assert found["replayed"] and all(finite != is_bad for finite in found["replayed"])
    names = sorted(path.name for path in (tmp_path / "bad").iterdir())
    bad = ["step_000002_critic_1", "step_000002_critic_2", "step_000004_critic_1"]
    assert names == [f"{stem}_rank{rank}.pt" for stem in bad for rank in range(world_size)]
    facts = torch.load(tmp_path / "bad" / names[0], weights_only=True)
    assert (facts["step"], facts["role"], facts["update"], facts["rank"]) == (2, "critic", 1, 0)
    assert "value_loss" in facts["not_finite"] and "grad_norm" in facts["not_finite"]


def _poisoned_actor(model: str) -> list[dict]:
    with scripted_roles(model, {}, {}) as roles:
        batch = _batch(roles)
        old_BT = roles.actor.logprobs(batch)
        advantages_BT, ones_BT = batch.mask_BT.clone(), torch.ones_like(batch.mask_BT)
        rows = batch.lengths_B[:4].argsort(descending=True)  # the samples of the first update
        advantages_BT[rows[0]] = torch.inf
        return roles.actor.update(batch, old_BT, old_BT, advantages_BT, ones_BT)


def test_the_first_update_of_a_step_may_be_the_bad_one(model):
    ((first, second),) = run_ranks(_poisoned_actor, 1, model)
    assert first == {"lr": first["lr"], "skipped": 1.0}
    assert second["skipped"] == 0.0 and second["grad_norm"] > 0


def test_bad_updates_of_a_history_that_was_left_are_forgotten(tmp_path):
    names = ["step_000003_actor_1", "step_000004_critic_2", "step_000005_actor_1", "step_000009_sft_1"]
    leave_bad_updates(tmp_path, *names)
    delete_bad_updates(tmp_path, ("actor", "critic"), after=4)
    assert sorted(path.name.removesuffix("_rank0.pt") for path in (tmp_path / "bad_updates").iterdir()) == [
        *names[:2],
        names[3],
    ]


def test_samples_of_numbers_that_are_not_finite_are_named():
    good_BT, bad_BT = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, torch.nan], [torch.inf, 0.0]])
    require_finite({"values": good_BT}, [4, 0, 7], 2, 3, ALONE)
    with pytest.raises(RuntimeError) as raised:
        require_finite({"old_logprobs": good_BT, "values": bad_BT}, [4, 0, 7], 2, 3, ALONE)
    text = str(raised.value)
    assert (
        "step 3: not finite before any update: values of sample 0 (prompt 0, completion 0), sample 7 (prompt 3, com"
        in text
    )
    assert "old_logprobs" not in text and "sample 4" not in text


@pytest.mark.slow
def test_a_critic_that_explodes_is_told_from_its_updates_to_its_values(tmp_path):
    run_dir = tmp_path / "run"
    rates = ["critic.optim.lr=1e36", "critic.optim.lr_warmup_fraction=0", "critic.optim.lr_decay_style=constant"]
    overrides = [
        *SMALL,
        *few_problems(tmp_path),
        f"trainer.run_dir={run_dir}",
        *rates,
        "rollout.n_samples_per_prompt=4",
    ]
    with pytest.raises(AssertionError, match="step 2: not finite before any update: values of sample"):
        run_ranks(train_here, 1, overrides)
    assert [path.name for path in (run_dir / "bad_updates").iterdir()] == ["step_000001_critic_2_rank0.pt"]
    delete_bad_updates(run_dir, ("actor", "critic"), 0)
    assert list((run_dir / "bad_updates").iterdir()) == []
    with pytest.raises(AssertionError, match="1 updates, and trainer.max_bad_updates=0"):
        run_ranks(train_here, 1, [*overrides, "trainer.max_bad_updates=0"])


def test_roles_that_ask_each_other_nothing_count_the_updates_of_all(tmp_path):
    actor, critic = (BadUpdates(tmp_path, role, 1, 2, limit=1) for role in ("actor", "critic"))
    ranks = [SimpleNamespace(rank=rank, role=None) for rank in (0, 1)]  # each alone with its model
    actor.record(0, [], ["policy_loss"], ranks[0])
    actor.record(0, [], ["policy_loss"], ranks[0])  # again, by a run that was resumed: the same update
    with pytest.raises(RuntimeError, match="critic update 1 was left out.*That makes 2 updates, and trainer.max_bad_"):
        critic.record(0, [], ["value_loss"], ranks[1])


def test_a_rank_without_rows_finds_nothing_wrong():
    require_finite({"values": torch.zeros(0, 0)}, [], 2, 3, ALONE)
