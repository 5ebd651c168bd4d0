"""The gate with real actors and engines: what trips it, what each policy does, and the same in two ranks as in one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_simplerl.config.load import compose, to_yaml
from nemo_simplerl.config.run_dir import check_run_dir
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.trainer.groups import Rollout
from nemo_simplerl.trainer.loop import ppo_step
from nemo_simplerl.trainer.roles import Roles
from support.gate import PROMPTS, GuessingEngine, change_gate, logged_messages, use_engine
from support.ranks import run_ranks
from support.tiny import save_hf_model, scripted_roles

ONE_UPDATE = {"global_batch_size": 8, "micro_batch_size": 2}
FIGURES = ("logprob_diff_mean", "logprob_diff_max", "tripped", "kl_k3", "effective_sample_size", "weight_capped_share")


class WarmEngine(HfEngine):
    """Samples at temperature 1 whatever it is told."""

    def generate(self, prompts, params, seeds):
        return super().generate(prompts, replace(params, temperature=1.0), seeds)


class RoundingEngine(HfEngine):
    """Rounds its logits to bfloat16."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.bfloat16().float())


def _gate(roles: Roles, step: int = 1):
    """The gate's answer on a rollout, and its batch."""
    roles.begin(PROMPTS, step)
    completions = roles.generate(PROMPTS, step)
    wrong = [Grade("incorrect", "ok", 0.0)] * len(completions)
    batch = roles.batch(Rollout(PROMPTS, completions, wrong, [0.0] * len(completions)), step)
    return roles.consistency_gate(batch, roles.actor.logprobs(batch), step), batch


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_hf_model(tmp_path_factory.mktemp("base") / "model"))


def _engines(folder: str) -> dict[str, dict[str, float]]:
    """Metrics of an engine that matches and of three that do not; each of those must be stopped."""
    found = {}
    with scripted_roles(folder, {}, {}) as roles, logged_messages() as messages:
        change_gate(roles, policy="stop")
        for name, kind in (("matching", HfEngine), ("warm", WarmEngine), ("rounding", RoundingEngine)):
            use_engine(roles, kind(folder, tokenizer=None, max_batch_size=64))
            if name != "matching":
                with pytest.raises(RuntimeError, match="Step 1: .* stale weights, .* another temperature.*max_share"):
                    _gate(roles)
            change_gate(roles, policy="off")
            found[name] = _gate(roles)[0].metrics
            change_gate(roles, policy="stop")
        use_engine(roles, HfEngine(folder, tokenizer=None, max_batch_size=64))
        roles.refit = lambda version: {}
        ppo_step(1, PROMPTS, roles)
        with pytest.raises(RuntimeError, match=r"Step 2: .*max_difference=0.001 nats"):
            ppo_step(2, PROMPTS, roles)
        change_gate(roles, policy="off")
        found["stale"] = _gate(roles, 2)[0].metrics
    assert messages == []
    return found


def test_stale_weights_another_temperature_and_rounded_logits_stand_out_and_are_stopped(model):
    found = run_ranks(_engines, 1, model)[0]
    matching = found.pop("matching")
    assert matching["consistency/logprob_diff_max"] < 1e-4
    assert matching["consistency/tripped"] == matching["consistency/share_beyond"] == 0
    assert set(found) == {"warm", "rounding", "stale"}
    for name, metrics in found.items():
        assert metrics["consistency/logprob_diff_mean"] > 1e-3, name
        assert metrics["consistency/kl_k3"] > 100 * abs(matching["consistency/kl_k3"]), name
        assert metrics["consistency/tripped"] == 1, name


def _quirks(folder: str) -> None:
    with scripted_roles(folder, {}, {"overwrite_truncated_with_eos": "true"}) as roles, logged_messages() as messages:
        use_engine(roles, HfEngine(folder, tokenizer=None, max_batch_size=64))
        gate, batch = _gate(roles)
        assert batch.truncated_B.any()
        assert (batch.engine_mask_BT.sum(dim=1) < batch.mask_BT.sum(dim=1)).equal(batch.truncated_B)
        assert gate.metrics["consistency/logprob_diff_max"] < 1e-4
        assert messages == []


def test_an_eos_that_was_put_over_a_sampled_token_is_not_compared(model):
    run_ranks(_quirks, 1, model)


def _chosen_difference(folder: str) -> None:
    with scripted_roles(folder, {}, {"logprob_temperature": "one"}) as roles, logged_messages() as messages:
        change_gate(roles, policy="warn", max_difference=1e-3, max_share=0.0)
        use_engine(roles, HfEngine(folder, tokenizer=None, max_batch_size=64))
        metrics = _gate(roles)[0].metrics
        assert metrics["consistency/logprob_diff_mean"] > 0.1
        assert metrics["consistency/tripped"] == 0 and messages == []
        use_engine(roles, engine := GuessingEngine(131))
        engine.last_word = math.nan
        assert _gate(roles)[0].metrics["consistency/tripped"] == 1
        assert len(messages) == 1 and "have no finite one" in messages[0]


def test_training_at_another_temperature_by_choice_is_no_news_but_a_nan_is(model):
    run_ranks(_chosen_difference, 1, model)


def _warnings(folder: str) -> list[str]:
    with scripted_roles(folder, {}, {}) as roles:
        use_engine(roles, GuessingEngine(131))
        change_gate(roles, policy="warn", max_difference=0.5, max_share=0.0)
        with logged_messages() as warnings:
            share = _gate(roles, 1)[0].metrics["consistency/share_beyond"]
            assert 0 < share < 1
            _gate(roles, 2)
        with logged_messages() as others:
            change_gate(roles, max_share=share)
            assert _gate(roles, 1)[0].metrics["consistency/tripped"] == 0
            change_gate(roles, policy="off", max_share=0.0)
            assert _gate(roles, 1)[0].metrics["consistency/tripped"] == 1
        assert others == []
        return warnings


def test_warn_says_a_line_each_time_the_share_is_above_what_is_tolerated(model):
    first, second = run_ranks(_warnings, 1, model)[0]
    assert first.startswith("step 1: ") and second.startswith("step 2: ")
    assert "max_difference=0.5" in first and "\n" not in first


def _losses(folder: str, policy: str) -> None:
    """One update over the whole rollout, whose ratio is 1: its loss is -sum(gate weight * advantage) / all tokens."""
    with scripted_roles(folder, ONE_UPDATE, {"loss_aggregation": "token_mean"}) as roles, logged_messages() as messages:
        change_gate(roles, policy=policy, max_difference=0.7, importance_cap=1.25)
        use_engine(roles, engine := GuessingEngine(131))
        engine.last_word = math.nan
        seen = {}
        update = roles.actor.update
        roles.actor.update = lambda *given: seen.setdefault("updates", update(*seen.setdefault("given", given)))
        metrics = ppo_step(1, PROMPTS, roles)[0]
        assert len(messages) == 1
        batch, old_BT, _, advantages_BT, weights_BT = seen["given"]
        difference_BT = old_BT - batch.engine_logprobs_BT
        is_response_BT = batch.mask_BT > 0
        if policy == "mask":
            expected_BT = torch.where(is_response_BT & ~(difference_BT.abs() <= 0.7), 0.0, 1.0)
        else:
            expected_BT = difference_BT.exp().clamp(max=1.25).nan_to_num(0.0)
        assert torch.equal(weights_BT[is_response_BT], expected_BT[is_response_BT])
        # Some of each kind: left out or capped, and not.
        values = weights_BT[is_response_BT]
        assert (values == 0).any() and (values > 0).any()
        assert policy == "mask" or ((values == 1.25).any() and ((values > 0) & (values < 1.25)).any())
        loss = -float((expected_BT * advantages_BT)[is_response_BT].sum() / is_response_BT.sum())
        assert seen["updates"][0]["policy_loss"] == pytest.approx(loss, rel=1e-4)
        assert metrics["consistency/weight_mean"] == pytest.approx(float(values.mean()), rel=1e-5)


@pytest.mark.parametrize("policy", ["mask", "correct"])
def test_the_policy_loss_weighs_each_token_by_the_gate_and_divides_by_all_tokens(model, policy):
    run_ranks(_losses, 1, model, policy)


def _all_masked(folder: str) -> dict[str, float]:
    with scripted_roles(folder, {}, {}) as roles:
        change_gate(roles, policy="mask", max_difference=1e-9)
        use_engine(roles, GuessingEngine(131))
        return ppo_step(1, PROMPTS, roles)[0]


def test_with_every_token_masked_the_actor_stands_still_and_the_critic_learns(model):
    metrics = run_ranks(_all_masked, 1, model)[0]
    assert metrics["consistency/share_beyond"] == 1
    assert metrics["actor/policy_loss"] == metrics["actor/grad_norm_max"] == 0
    assert metrics["critic/grad_norm"] > 0


def _two_steps(folder: str, policy: str) -> list[dict[str, float]]:
    with scripted_roles(folder, {}, {}) as roles:
        change_gate(roles, policy=policy, max_difference=0.7, importance_cap=1.25)
        use_engine(roles, GuessingEngine(131))
        return [ppo_step(step, PROMPTS, roles)[0] for step in (1, 2)]


@pytest.mark.parametrize("policy", ["mask", "correct"])
def test_two_data_ranks_gate_as_one(model, policy):
    (expected,) = run_ranks(_two_steps, 1, model, policy)
    assert 0 < expected[0]["consistency/share_beyond"] < 1
    for found in run_ranks(_two_steps, 2, model, policy):
        for got, wanted in zip(found, expected, strict=True):
            assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)


class LyingEngine(HfEngine):
    """Says that its weights are of version `says`, where that is not None."""

    says: int | None = None

    def generate(self, prompts, params, seeds):
        found = super().generate(prompts, params, seeds)
        return found if self.says is None else replace(found, versions=np.full(len(found), self.says))


def _older_by_one(folder: str) -> dict[str, dict[str, float]]:
    """Metrics of steps whose samples are of the weights before, and of a step whose engine lies about that."""
    ahead = {"ahead": 1, "consistency.policy": "correct"}
    found = {}
    with scripted_roles(folder, {}, {"kl_coef": 0.0}, None, ahead) as roles, logged_messages() as messages:
        change_gate(roles, max_difference=1e-3, importance_cap=1.01)
        use_engine(roles, engine := LyingEngine(folder, tokenizer=None, max_batch_size=64))
        refit, roles.refit = roles.refit, lambda version: {}
        seen = {}
        update = roles.actor.update
        roles.actor.update = lambda *given: (seen.update(given=given), update(*given))[1]
        found["first"] = ppo_step(1, PROMPTS, roles)[0]
        found["older"] = ppo_step(2, PROMPTS, roles)[0]
        batch, old_BT, _, _, weights_BT = seen["given"]
        is_response_BT = batch.mask_BT > 0
        expected_BT = (old_BT - batch.engine_logprobs_BT).exp().clamp(max=1.01)
        assert torch.equal(weights_BT[is_response_BT], expected_BT[is_response_BT])
        assert {True, False} == set((weights_BT[is_response_BT] == 1.01).tolist())
        assert messages == []
        engine.says = 1  # it holds 0
        found["stale"] = ppo_step(3, PROMPTS, roles)[0]
        (message,) = messages
        assert message.startswith("step 3: ") and "stale weights" in message
        roles.actor.has_earlier = False
        refit(2)
        engine.says = None
        found["unknown"] = ppo_step(4, PROMPTS, roles)[0]
        assert "nobody has the weights that sampled any more" in messages[-1]
    return found


def test_samples_of_the_weights_before_are_held_against_those_and_corrected_to_these(model):
    found = run_ranks(_older_by_one, 1, model)[0]
    assert [found[name]["rollout/lag"] for name in ("first", "older", "stale", "unknown")] == [0, 1, 1, 1]
    first, older, stale = ({name: found[step][f"consistency/{name}"] for name in FIGURES} for step in list(found)[:3])
    assert first["logprob_diff_max"] < 1e-4 and older["logprob_diff_max"] < 1e-4, "the engine is right in both"
    assert first["tripped"] == older["tripped"] == 0 and stale["tripped"] == 1
    assert stale["logprob_diff_mean"] > 1e-3
    assert first["kl_k3"] < 1e-8 < 1e-6 < older["kl_k3"], "the policy has moved since"
    assert first["effective_sample_size"] == pytest.approx(1.0) and 0.5 < older["effective_sample_size"] < 0.999
    assert first["weight_capped_share"] == 0 < older["weight_capped_share"] < 1
    unknown = found["unknown"]
    assert "consistency/logprob_diff_max" not in unknown and unknown["consistency/tripped"] == 0


def _nan_on_one_rank(folder: str) -> str:
    with scripted_roles(folder, {}, {}) as roles:
        change_gate(roles, policy="stop", max_difference=100.0, max_share=1.0)
        use_engine(roles, GuessingEngine(131))
        batch = _gate(roles)[1]
        if roles.mesh.dp_rank == 1:
            batch.engine_logprobs_BT[batch.engine_mask_BT > 0] = math.nan
        try:
            roles.consistency_gate(batch, roles.actor.logprobs(batch), 1)
        except RuntimeError as error:
            return str(error)
    return "was not stopped"


def test_what_one_rank_finds_stops_every_rank_with_the_same_words(model):
    one, other = run_ranks(_nan_on_one_rank, 2, model)
    assert one == other
    assert "have no finite one" in one and "look at the engine's weights" in one


def test_a_stopped_run_may_go_on_with_another_share_but_not_with_another_policy(tmp_path):
    overrides = ["experiment=quickstart", f"trainer.run_dir={tmp_path}", "rollout.consistency.policy=stop"]
    (tmp_path / "config.yaml").write_text(to_yaml(compose(overrides)))
    check_run_dir(compose([*overrides, "rollout.consistency.max_share=0.2"]))
    with pytest.raises(ValueError, match="rollout.consistency.policy=correct"):
        check_run_dir(compose([*overrides, "rollout.consistency.policy=correct"]))
