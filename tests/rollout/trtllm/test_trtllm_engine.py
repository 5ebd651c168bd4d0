"""The TensorRT-LLM adapter driven on the double of tests/fakes: one engine, in real Ray processes, for most tests."""

import os
import signal
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from fakes.double import double_installed
from fakes.small_engine import MAX_MODEL_LEN, VOCAB, buckets_of, save_model, start_engine
from nemo_simplerl.data.tokenizer import build_tokenizer
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.own_process.handles import Staging
from support.links import flipped, on

pytestmark = pytest.mark.slow

LIMIT = 250  # the rows of the embedding from here on stand for no token
STOPS = tuple(range(3, VOCAB, 9))
SAMPLED = SamplingParams(n=3, max_tokens=12, temperature=0.7, top_p=1.0, top_k=0, stop=(), stop_token_ids=STOPS)
GREEDY = replace(SAMPLED, n=1, temperature=0.0)
PROMPTS = [[5, 9, 11], [7], [3, 1, 4, 1, 5, 9, 2, 6], [100, 101, 102, 103]]
SEEDS = [2**63 + 11 * i for i in range(12)]
LAUNCHER = {"SLURM_JOB_ID": "7", "OMPI_COMM_WORLD_RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(["a b c"], 259, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def shared(folder, tokenizer):
    """The engine, started as under a launcher, and the environment after its start."""
    with double_installed("hf_engine"):
        os.environ.update(LAUNCHER)
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        engine = start_engine(folder, tokenizer, vocab_limit=LIMIT)
        after = {name: os.environ.get(name) for name in [*LAUNCHER, "CUDA_VISIBLE_DEVICES"]}
        after["SIGTERM"] = signal.signal(signal.SIGTERM, handler)
        yield engine, after
        engine.close()


@pytest.fixture
def engine(shared, weights):
    engine, _ = shared
    engine.wake()
    engine.refit(buckets_of(weights), 3)
    return engine


@pytest.fixture(scope="module")
def hf(folder, weights, tokenizer):
    engine = HfEngine(folder, tokenizer=tokenizer, max_batch_size=256, vocab_limit=LIMIT)
    engine.refit(buckets_of(weights), 3)
    return engine


def test_it_samples_what_the_hf_engine_samples_given_that_ones_draws(engine, hf):
    for params in (SAMPLED, GREEDY, replace(SAMPLED, stop_token_ids=())):
        seeds = SEEDS[: len(PROMPTS) * params.n]
        expected = hf.generate(PROMPTS, params, seeds)
        found = engine.generate(PROMPTS, params, seeds)
        # Its process may have another number of threads, and sums in another order.
        for got, wanted in zip(found, expected, strict=True):
            assert got.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
            assert replace(got, logprobs=()) == replace(wanted, logprobs=())
        assert {completion.weight_version for completion in expected} == {3}
        assert max(max(completion.token_ids) for completion in found) < LIMIT
        if params is SAMPLED:
            assert {completion.finish_reason for completion in expected} == {"stop", "length"}
    assert engine.generate([], SAMPLED, []) == []


def test_stop_strings_end_a_response_where_the_hf_engine_ends_it(engine, hf, tokenizer):
    free = hf.generate(PROMPTS, replace(GREEDY, stop_token_ids=()), SEEDS[:4])
    stops = tuple(tokenizer.decode(list(completion.token_ids[4:6])) for completion in free[:2])
    params = replace(GREEDY, stop=stops, stop_token_ids=())
    expected = hf.generate(PROMPTS, params, SEEDS[:4])
    found = engine.generate(PROMPTS, params, SEEDS[:4])
    assert [c.finish_reason for c in expected].count("stop") >= 2
    assert [replace(c, logprobs=()) for c in found] == [replace(c, logprobs=()) for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_prompt_beyond_the_engines_default_limit_is_served_and_one_beyond_the_models_is_refused(engine):
    long = [i % VOCAB for i in range(MAX_MODEL_LEN - 12)]
    assert len(long) > 1024
    [completion] = engine.generate([long], replace(GREEDY, stop_token_ids=()), [0])
    assert len(completion.token_ids) == 12
    with pytest.raises(ValueError, match="1189 tokens and max_tokens is 12.*max_model_len=1200"):
        engine.generate([[*long, 1]], GREEDY, [0])
    with pytest.raises(ValueError, match=f"holds ids 7 to {VOCAB}, but the model's vocabulary is {VOCAB}"):
        engine.generate([[7, VOCAB]], GREEDY, [0])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[7], []], GREEDY, [0, 0])
    with pytest.raises(ValueError, match="need 2 seeds, got 1"):
        engine.generate([[7], [8]], GREEDY, [0])


def test_a_refit_answers_digests_of_what_arrived_and_changes_what_is_sampled(engine, weights):
    before = engine.generate(PROMPTS, GREEDY, SEEDS[:4])
    changed = {name: tensor * 1.5 for name, tensor in weights.items()}
    digests = engine.refit(buckets_of(changed), 4, digests=True)
    assert digests == {name: digest(tensor) for name, tensor in changed.items()}
    after = engine.generate(PROMPTS, GREEDY, SEEDS[:4])
    assert [c.token_ids for c in after] != [c.token_ids for c in before]
    assert {completion.weight_version for completion in after} == {4} == {engine.weight_version}
    assert engine.refit(buckets_of(weights), 5) == {}
    again = engine.generate(PROMPTS, GREEDY, SEEDS[:4])
    assert [c.token_ids for c in again] == [c.token_ids for c in before]


def test_a_bit_that_flips_on_the_way_shows_in_the_digests(engine, weights, monkeypatch):
    put = Staging.put
    damage = on("model.norm.weight", lambda name, tensor: [(name, flipped(tensor))])
    monkeypatch.setattr(Staging, "put", lambda self, bucket: put(self, [*damage(bucket, 0)]))
    digests = engine.refit(buckets_of(weights), 4, digests=True)
    sent = {name: digest(tensor) for name, tensor in weights.items()}
    assert [name for name in sent if digests[name] != sent[name]] == ["model.norm.weight"]


def test_a_sender_may_reuse_a_buckets_memory_when_the_next_is_asked_for(engine, weights, hf):
    def reused():
        for bucket in buckets_of(weights):
            copies = [(name, tensor.clone()) for name, tensor in bucket]
            yield copies
            for _, tensor in copies:
                tensor.fill_(float("nan"))

    engine.refit(reused(), 3)
    assert engine.generate(PROMPTS, GREEDY, SEEDS[:4]) == hf.generate(PROMPTS, GREEDY, SEEDS[:4])


def test_weights_that_do_not_fit_are_named_although_the_engine_would_pass_over_them(engine, weights):
    wrong = dict(weights)
    wrong["model.surprise.weight"] = wrong.pop("model.norm.weight")
    wrong["lm_head.weight"] = wrong["lm_head.weight"].T.contiguous()
    consumed = []

    def stream():
        for bucket in buckets_of(wrong):
            yield bucket
            consumed.append(bucket)
        yield [("model.embed_tokens.weight", weights["model.embed_tokens.weight"])]

    with pytest.raises(ValueError) as error:
        engine.refit(stream(), 4)
    for told in (
        "unknown model.surprise.weight",
        "missing model.norm.weight",
        f"lm_head.weight is (64, {VOCAB})",
        "duplicate model.embed_tokens.weight",
    ):
        assert told in str(error.value)
    assert len(consumed) == len(list(buckets_of(wrong))), "other ranks may be sending it"
    with pytest.raises(RuntimeError, match="refit to version 4 did not complete"):
        engine.generate([[7]], GREEDY, [0])
    assert engine.weight_version is None
    engine.refit(buckets_of(weights), 5)
    assert engine.generate([[7]], GREEDY, [0])[0].weight_version == 5


def test_an_error_of_the_engine_leaves_it_unusable_until_a_full_refit(engine, weights, monkeypatch):
    handles, calls, consumed = Staging.handles, [], []

    def broken(self):
        calls.append(1)
        return handles(self) if len(calls) < 3 else "bm8gcGlja2xl"

    def stream():
        for bucket in buckets_of(weights):
            yield bucket
            consumed.append(bucket)

    monkeypatch.setattr(Staging, "handles", broken)
    with pytest.raises(Exception, match="UnpicklingError|pickle"):
        engine.refit(stream(), 4)
    assert len(calls) == 3 and len(consumed) == len(list(buckets_of(weights))) > 3
    with pytest.raises(RuntimeError, match="did not complete"):
        engine.generate([[7]], GREEDY, [0])
    monkeypatch.undo()
    engine.refit(buckets_of(weights), 5)
    assert engine.generate([[7]], GREEDY, [0])[0].weight_version == 5


def test_invalid_weights_are_not_sampled_from(engine, weights):
    engine.invalidate("the digests of rank 1 differ")
    with pytest.raises(RuntimeError, match="the digests of rank 1 differ"):
        engine.generate([[7]], GREEDY, [0])


def test_it_sleeps_and_wakes_with_and_without_a_refit(engine, weights):
    expected = engine.generate(PROMPTS, GREEDY, SEEDS[:4])
    for _ in range(2):  # the second time with a KV cache that no request has woken
        engine.sleep()
        engine.sleep()
        with pytest.raises(RuntimeError, match=r"call wake\(\)"):
            engine.generate([[7]], GREEDY, [0])
        with pytest.raises(RuntimeError, match=r"call wake\(\)"):
            engine.refit(buckets_of(weights), 4)
        engine.wake()
        engine.wake()
    assert engine.generate(PROMPTS, GREEDY, SEEDS[:4]) == expected, "the weights and the prompts are those of before"
    engine.sleep()
    engine.wake()
    engine.refit(buckets_of(weights), 3)
    assert engine.generate(PROMPTS, GREEDY, SEEDS[:4]) == expected


def test_the_launchers_environment_and_the_signal_handler_are_as_before_the_start(shared):
    _, after = shared
    assert after == {**LAUNCHER, "CUDA_VISIBLE_DEVICES": None, "SIGTERM": signal.SIG_IGN}
