"""algo.old_logprobs=engine: the engine's own log-probabilities, where the gate finds them to be the policy's."""

import pytest

from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.trainer.loop import ppo_step
from support.gate import PROMPTS, GuessingEngine, change_gate, logged_messages, use_engine
from support.ranks import run_ranks
from support.tiny import save_hf_model, scripted_roles

ENGINE = {"old_logprobs": "engine", "ratio_tolerance": 1e-4}
HALF = {"global_batch_size": 4, "micro_batch_size": 2}  # two updates of the eight samples


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_hf_model(tmp_path_factory.mktemp("base") / "model"))


def _steps(folder: str, algo: dict) -> tuple[list[dict[str, float]], int]:
    """Metrics of two steps, and how many samples the trainer computed old log-probabilities of."""
    with scripted_roles(folder, HALF, algo) as roles:
        use_engine(roles, HfEngine(folder, tokenizer=None, max_batch_size=64))
        change_gate(roles, policy="stop")
        computed = []
        logprobs = roles.actor.logprobs
        roles.actor.logprobs = lambda batch: (computed.append(len(batch)), logprobs(batch))[1]
        metrics = [ppo_step(step, PROMPTS, roles)[0] for step in (1, 2)]
        return metrics, sum(computed)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_steps_are_the_same_and_the_trainer_computes_a_probe_alone(model, world_size):
    trainers = run_ranks(_steps, world_size, model, {})
    engines = run_ranks(_steps, world_size, model, ENGINE)
    for (wanted, all_samples), (got, probed) in zip(trainers, engines, strict=True):
        assert (all_samples * world_size, probed) == (16, 2)  # a step: one of a rank's eight samples, or four
        for step in (0, 1):
            assert wanted[step].keys() == got[step].keys()
            for key, value in wanted[step].items():
                if not key.startswith("consistency/"):
                    assert got[step][key] == pytest.approx(value, rel=1e-3, abs=1e-4), (step, key)
            assert 0 < got[step]["consistency/logprob_diff_max"] < 1e-4


def _guessed(folder: str) -> None:
    with scripted_roles(folder, HALF, ENGINE | {"ratio_tolerance": "null"}) as roles:
        use_engine(roles, GuessingEngine(131))
        change_gate(roles, policy="warn", max_difference=0.1, max_share=0.0)
        seen = {}
        update = roles.actor.update
        roles.actor.update = lambda *given: seen.setdefault("updates", update(*seen.setdefault("given", given)))
        with logged_messages() as warnings:
            metrics = ppo_step(1, PROMPTS, roles)[0]
        batch, old_BT = seen["given"][:2]
        assert metrics["consistency/tripped"] == 1 and len(warnings) == 1
        assert not ((old_BT == batch.engine_logprobs_BT) & (batch.mask_BT > 0)).any()
        change_gate(roles, policy="off", max_difference=0.1, max_share=0.0)
        roles.refit(1)
        seen.clear()
        with logged_messages() as messages:
            metrics = ppo_step(2, PROMPTS, roles)[0]
        assert metrics["consistency/share_beyond"] > 0.75, "tokens that nobody computed twice are not compared"
        batch, old_BT = seen["given"][:2]
        is_engines_B = ((old_BT == batch.engine_logprobs_BT) | (batch.mask_BT == 0)).all(dim=1)
        assert is_engines_B.tolist() == [False] + [True] * 7
        assert messages == []


def test_where_the_gate_trips_the_trainer_computes_them_all_unless_it_is_off(model):
    run_ranks(_guessed, 1, model)
