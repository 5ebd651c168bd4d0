"""The adapter in the trainer's process: what it refuses to send, and that a failed engine is never used again.

The engine's process is a double; tests/rollout/vllm/test_vllm_engine.py asks the same of the real vLLM.
"""

from dataclasses import replace
from itertools import count

import pytest

from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.refit import verified_refit
from support.links import Linked, flipped, on
from support.vllm_engine import (
    GREEDY,
    MAX_MODEL_LEN,
    VOCAB,
    DoubleProcess,
    buckets_of,
    make_engine,
    save_model,
    weights_of,
)

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(folder, tmp_path):
    numbers = count()

    def start(python, environment, name):
        return DoubleProcess(python, environment, name, tmp_path / str(next(numbers)))

    return make_engine(folder, "sh", start=start)


def refit(engine, folder, version=1, fault=None):
    linked = engine if fault is None else Linked(engine, fault)
    return verified_refit(linked, buckets_of(weights_of(folder)), version, verify=True, group=None)


def test_a_refit_hands_over_every_weight_and_counts_when_they_are_read_back(engine, folder):
    with pytest.raises(RuntimeError, match="no weights yet"):
        engine.generate([[5]], GREEDY, [0])
    assert refit(engine, folder)["refit/buckets"] > 3
    process = engine._process
    assert {name: digest(tensor) for name, tensor in process.held.items()} == {
        name: digest(tensor) for name, tensor in weights_of(folder).items()
    }
    assert engine.weight_version == 1
    [completion] = engine.generate([[5]], GREEDY, [0])
    assert completion.weight_version == 1 and completion.token_ids == tuple(range(4, 12))


def test_only_config_json_reaches_the_engine(engine):
    assert [path.name for path in (engine._process.folder / "model").iterdir()] == ["config.json"]


def test_a_tied_head_may_come_under_either_name(engine, folder):
    weights = weights_of(folder)
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    verified_refit(engine, buckets_of(weights), 4, verify=True, group=None)
    assert engine.weight_version == 4 and "model.embed_tokens.weight" in engine._process.held


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda name, tensor: [(name, flipped(tensor))], f"holds other values than were sent: {UP}"),
        (lambda name, tensor: [], f"missing {UP}"),
        (lambda name, tensor: [(name, tensor), (name, tensor)], f"duplicate {UP}"),
        (lambda name, tensor: [(name + "s", tensor)], f"unknown {UP}s"),
        (lambda name, tensor: [(name, tensor[1:])], f"{UP} is .95, 64., the model's is .96, 64."),
    ],
    ids=["a flipped bit", "dropped", "doubled", "misnamed", "misshapen"],
)
def test_a_damaged_refit_is_told_and_nothing_is_sampled_until_another_succeeds(engine, folder, change, told):
    refit(engine, folder)
    with pytest.raises(RuntimeError, match=told):
        refit(engine, folder, 2, on(UP, change))
    assert engine.weight_version is None
    with pytest.raises(RuntimeError, match="refuses to generate"):
        engine.generate([[5]], GREEDY, [0])
    refit(engine, folder, 3)
    assert engine.generate([[5]], GREEDY, [0])[0].weight_version == 3


def test_an_update_of_nothing_is_no_refit(engine):
    with pytest.raises(ValueError, match="missing model.embed_tokens.weight"):
        engine.refit([], 1)


def test_an_engine_that_may_hold_a_mixture_is_ended_and_the_next_refit_starts_another(engine, folder):
    refit(engine, folder)
    first = engine._process

    def fail(method, *args):
        if method == "load" and len([call for call in first.calls if call[0] == "load"]) > 6:
            raise RuntimeError("the vLLM engine ended")

    first.fault = fail
    with pytest.raises(RuntimeError, match="the vLLM engine ended"):
        refit(engine, folder, 2)
    assert first.is_closed and engine.weight_version is None
    refit(engine, folder, 3)
    assert engine._process is not first and engine.weight_version == 3


def test_so_is_one_that_failed_while_it_sampled(engine, folder):
    refit(engine, folder)
    first = engine._process

    def fail(method, *args):
        raise RuntimeError("the vLLM engine gave no sign of life")

    first.fault = fail
    with pytest.raises(RuntimeError, match="no sign of life"):
        engine.generate([[5]], GREEDY, [0])
    assert first.is_closed
    with pytest.raises(RuntimeError, match="refuses to generate: RuntimeError in its last generation"):
        engine.generate([[5]], GREEDY, [0])
    refit(engine, folder, 2)
    assert engine.generate([[5]], GREEDY, [0])[0].weight_version == 2


def test_a_refit_that_begins_inside_another_voids_both(engine, folder):
    def buckets():
        yield from list(buckets_of(weights_of(folder)))[:2]
        with pytest.raises(RuntimeError, match="still running"):
            engine.refit([], 7)
        yield from list(buckets_of(weights_of(folder)))[2:]

    with pytest.raises(RuntimeError, match="began before"):
        engine.refit(buckets(), 2)
    assert engine.weight_version is None


@pytest.mark.parametrize(
    ("prompts", "params", "seeds", "told"),
    [
        ([[5, VOCAB]], GREEDY, [0], f"holds ids 5 to {VOCAB}"),
        ([[-1]], GREEDY, [0], "holds ids -1"),
        ([[]], GREEDY, [0], "prompt 0 is empty"),
        ([[5] * (MAX_MODEL_LEN - 7)], GREEDY, [0], "together more than max_model_len"),
        ([[5]], GREEDY, [0, 1], "need 1 seeds, got 2"),
        ([[5]], replace(GREEDY, stop_token_ids=(VOCAB,)), [0], "no ids of the model's vocabulary"),
        ([[5]], replace(GREEDY, stop=("x",)), [0], "need a tokenizer"),
        ([[5]], replace(GREEDY, temperature=2.5), [0], "takes at most 2"),
        ([[5]], replace(GREEDY, temperature=0.009), [0], "samples at 0.01 or more"),
    ],
)
def test_what_would_end_vllm_or_be_cut_in_silence_is_refused_before_it_is_sent(
    engine, folder, prompts, params, seeds, told
):
    refit(engine, folder)
    with pytest.raises(ValueError, match=told):
        engine.generate(prompts, params, seeds)
    assert "generate" not in [method for method, *_ in engine._process.calls]
    assert engine.generate([[5]], GREEDY, [0]), "the engine still works"


def test_responses_end_at_our_stops(folder, tmp_path):
    class Letters:
        def decode(self, token_ids, skip_special_tokens):
            return "".join(chr(93 + id_) for id_ in token_ids)

    engine = make_engine(
        folder, "sh", tokenizer=Letters(), start=lambda *args: DoubleProcess(*args, tmp_path / "engine")
    )
    refit(engine, folder)
    [completion] = engine.generate([[5]], replace(GREEDY, stop=("cd",)), [0])
    assert (completion.text, completion.finish_reason) == ("abcd", "stop")
    assert len(completion.logprobs) == 4


def test_heads_that_vllm_does_not_compute_on_a_cpu_are_refused_before_anything_starts(tmp_path):
    from support.tiny import save_hf_model

    with pytest.raises(ValueError, match="have size 16. On a CPU vLLM computes attention of sizes 32, 64"):
        make_engine(save_hf_model(tmp_path), "sh", start=None)


def test_a_closed_engine_and_one_asleep_refuse_to_work(engine, folder):
    refit(engine, folder)
    engine.sleep()
    for act in (lambda: engine.generate([[5]], GREEDY, [0]), lambda: engine.refit([], 2)):
        with pytest.raises(RuntimeError, match="asleep"):
            act()
    engine.wake()
    assert engine.weight_version == 1, "on a CPU nothing is dropped"
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate([[5]], GREEDY, [0])


def test_an_engine_that_failed_in_its_wake_is_woken_and_refitted_in_the_order_that_its_errors_say(
    engine, folder, monkeypatch
):
    refit(engine, folder)
    first = engine._process
    first.sleep = lambda *args: None
    monkeypatch.setattr(type(engine), "_frees_memory", True)
    engine.sleep()

    def fail(method, *args):
        raise RuntimeError("no memory left to wake in")

    first.fault = fail
    with pytest.raises(RuntimeError, match="no memory left"):
        engine.wake()
    assert first.is_closed
    with pytest.raises(RuntimeError, match=r"asleep; call wake\(\) first"):
        engine.refit([], 2)
    engine.wake()
    refit(engine, folder, 2)
    assert engine.generate([[5]], GREEDY, [0])[0].weight_version == 2


def test_a_gpu_drops_its_weights_in_its_sleep_and_takes_its_cache_back_last(engine, folder, monkeypatch):
    refit(engine, folder)
    process = engine._process
    process.sleep = process.wake = lambda *args: None
    monkeypatch.setattr(type(engine), "_frees_memory", True)
    engine.sleep()
    engine.wake()
    with pytest.raises(RuntimeError, match="dropped when it went to sleep"):
        engine.generate([[5]], GREEDY, [0])
    process.calls.clear()
    refit(engine, folder, 2)
    engine.generate([[5]], GREEDY, [0])
    engine.generate([[5]], GREEDY, [0])
    assert [call for call in process.calls if call[0] != "load"] == [
        ("finish", 2, True),
        ("wake", ["kv_cache"]),
        *[call for call in process.calls if call[0] == "generate"],
    ]
