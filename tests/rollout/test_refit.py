"""A refit is done when the engine holds what was sent, and not before."""

import pytest
import torch
from safetensors.torch import load_file

from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.refit import bucketed, verified_refit
from support.links import Linked, flipped, on
from support.tiny import ScriptedEngine, save_hf_model

PARAMS = SamplingParams(n=1, max_tokens=4, temperature=0.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
UP = "model.layers.1.mlp.up_proj.weight"
GATE, NORM = "model.layers.1.mlp.gate_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf_model(tmp_path_factory.mktemp("refit") / "model")


@pytest.fixture(scope="module")
def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def engine(folder):
    return HfEngine(folder, tokenizer=None, max_batch_size=4)


def lose_bucket(bucket, number):
    return [] if number == 2 else bucket


def exchange(bucket, number):
    names = {GATE: UP, UP: GATE}
    return [(names.get(name, name), tensor) for name, tensor in bucket]


def refit(engine, weights, version, *, verify=True):
    return verified_refit(engine, bucketed(weights.items(), 100_000), version, verify=verify, group=None)


def generated_version(engine):
    [completion] = engine.generate([[5, 9]], PARAMS, [0])
    return completion.weight_version


def assert_refused_until_refitted(engine, weights):
    assert engine.weight_version is None
    with pytest.raises(RuntimeError, match="refuses to generate"):
        engine.generate([[5, 9]], PARAMS, [0])
    refit(engine, weights, 9)
    assert generated_version(engine) == 9


def test_a_good_refit_is_verified_and_counted(engine, weights):
    metrics = refit(engine, weights, 3)
    num_buckets = len(list(bucketed(weights.items(), 100_000)))
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    assert num_buckets > 4
    assert metrics == {
        "refit/version": 3,
        "refit/buckets": num_buckets,
        "refit/bytes": num_bytes,
        "refit/verified": 1,
    }
    assert generated_version(engine) == 3
    assert refit(engine, weights, 4, verify=False)["refit/verified"] == 0
    assert generated_version(engine) == 4


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (on(UP, lambda name, tensor: [(name, flipped(tensor))]), ["other values", f"{UP} (bucket "]),
        (on(NORM, lambda name, tensor: [(name, flipped(tensor, 64 * 32 - 1))]), [f"{NORM} (bucket "]),
        (exchange, ["other values", f"{UP} (bucket ", f"{GATE} (bucket "]),
        (on(UP, lambda name, tensor: [(name, tensor[torch.randperm(96)])]), ["other values", UP]),
        (on(UP, lambda name, tensor: []), [f"missing {UP}"]),
        (on(UP, lambda name, tensor: [(name, tensor), (name, tensor)]), [f"duplicate {UP} (bucket "]),
        (on(UP, lambda name, tensor: [("surprise", tensor)]), ["unknown surprise (bucket ", f"missing {UP}"]),
        (on(UP, lambda name, tensor: [(name, tensor.T)]), [f"{UP} is (64, 96)"]),
        (lose_bucket, ["missing model.layers."]),
    ],
)
def test_what_a_link_breaks_is_named_and_nothing_is_sampled_from_it(engine, weights, fault, told):
    refit(engine, weights, 1)
    with pytest.raises(RuntimeError, match="refit to version 2 failed on rank 0") as error:
        refit(Linked(engine, fault), weights, 2)
    assert all(text in str(error.value) for text in told), str(error.value)
    assert_refused_until_refitted(engine, weights)


def test_without_digests_values_are_taken_on_trust_and_names_are_not(engine, weights):
    changed = on(UP, lambda name, tensor: [(name, flipped(tensor))])
    refit(Linked(engine, changed), weights, 2, verify=False)
    assert engine.weight_version == 2
    with pytest.raises(RuntimeError, match="missing"):
        refit(Linked(engine, lose_bucket), weights, 3, verify=False)
    assert_refused_until_refitted(engine, weights)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lose_bucket, "does not report"),
        (on(UP, lambda name, tensor: [("surprise", tensor)]), "not sent: surprise"),
        (on(UP, lambda name, tensor: [(name, tensor), (name, flipped(tensor))]), "other values"),
    ],
)
def test_an_engine_that_checks_nothing_itself_is_found_out_too(weights, fault, told):
    engine = ScriptedEngine(131)
    with pytest.raises(RuntimeError, match=told):
        refit(Linked(engine, fault), weights, 2)
    assert engine.weight_version is None


def test_an_engine_that_reports_another_version_is_refused(weights):
    class Stale(ScriptedEngine):
        def refit(self, buckets, version, *, digests=False):
            return super().refit(buckets, version - 1, digests=digests)

    with pytest.raises(RuntimeError, match="rank 0: the engine reports version 4"):
        refit(Stale(131), weights, 5)


def test_an_engine_that_stops_listening_is_refused(weights):
    class Impatient(ScriptedEngine):
        def refit(self, buckets, version, *, digests=False):
            return super().refit([next(buckets), next(buckets)], version, digests=digests)

    with pytest.raises(RuntimeError, match=r"took 2 of \d+ buckets"):
        refit(Impatient(131), weights, 5)


def test_an_engine_that_fails_midway_has_taken_every_bucket(engine, weights):
    sent = []

    def buckets():
        for bucket in bucketed(weights.items(), 100_000):
            sent.append(len(bucket))
            yield bucket

    def fail(bucket, number):
        if number == 1:
            raise MemoryError("no room for bucket 1")
        return bucket

    with pytest.raises(RuntimeError, match="MemoryError: no room"):
        verified_refit(Linked(engine, fail), buckets(), 2, verify=True, group=None)
    assert sum(sent) == len(weights), "other ranks may be in the collectives behind the stream"
    assert_refused_until_refitted(engine, weights)


@pytest.mark.parametrize("fails_first", ["the hashing", "the engine"])
def test_a_hashing_that_fails_leaves_no_bucket_unmade(engine, weights, monkeypatch, fails_first):
    sent = []

    def buckets():
        for bucket in bucketed(weights.items(), 100_000):
            sent.append(len(bucket))
            yield bucket

    def fail(*_):
        raise MemoryError("no room for it")

    monkeypatch.setattr("nemo_simplerl.rollout.refit.digest", fail)
    linked = Linked(engine, fail) if fails_first == "the engine" else engine
    with pytest.raises(RuntimeError, match="MemoryError: no room"):
        verified_refit(linked, buckets(), 2, verify=True, group=None)
    assert sum(sent) == len(weights)


def test_a_refit_begun_before_another_has_ended_voids_both(engine, weights):
    inner = []

    def buckets():
        for bucket in bucketed(weights.items(), 100_000):
            yield bucket
            if not inner:
                try:
                    refit(engine, weights, 3)
                except RuntimeError as error:
                    inner.append(str(error))

    with pytest.raises(RuntimeError, match="version 2 is void.*version 3") as outer:
        verified_refit(engine, buckets(), 2, verify=True, group=None)
    assert "still running" in inner[0]
    assert "rank 0" in str(outer.value)
    assert_refused_until_refitted(engine, weights)


def test_an_engine_lets_go_of_its_old_weights_when_a_refit_begins(engine, weights):
    refit(engine, weights, 1)
    held = []

    def buckets():
        held.append(engine.weight_version)
        yield [item for item in weights.items() if item[0] != UP]

    with pytest.raises(ValueError, match=f"missing {UP}"):
        engine.refit(buckets(), 2)
    assert held == [None]
    assert_refused_until_refitted(engine, weights)


def test_a_sleeping_engine_takes_every_bucket_and_says_that_it_sleeps(engine, weights):
    engine.sleep()
    buckets = bucketed(weights.items(), 100_000)
    with pytest.raises(RuntimeError, match=r"asleep; call wake\(\)"):
        engine.refit(buckets, 2)
    assert list(buckets) == []


def test_invalidated_weights_are_not_sampled_from(engine, weights):
    refit(engine, weights, 1)
    engine.invalidate("rank 7 says no")
    with pytest.raises(RuntimeError, match="rank 7 says no; call refit"):
        engine.generate([[5, 9]], PARAMS, [0])
    assert_refused_until_refitted(engine, weights)


@pytest.mark.parametrize(("sent", "held"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_cast_is_verified_in_the_dtype_that_was_sent(folder, weights, sent, held):
    engine = HfEngine(folder, tokenizer=None, max_batch_size=4, dtype=held)
    weights = {name: tensor.to(sent) for name, tensor in weights.items()}
    refit(engine, weights, 1)
    assert engine.weight_version == 1
    lowest_bit = on(UP, lambda name, tensor: [(name, flipped(tensor, 0))])
    with pytest.raises(RuntimeError, match=f"other values than were sent: {UP}"):
        refit(Linked(engine, lowest_bit), weights, 2)


def test_buckets_keep_the_order_and_a_large_tensor_travels_alone():
    sizes = {"z": 200, "a": 10, "b": 30, "c": 60, "d": 101, "e": 100, "f": 0, "g": 1}
    stream = [(name, torch.zeros(size, dtype=torch.int8)) for name, size in sizes.items()]
    names = ["".join(name for name, _ in bucket) for bucket in bucketed(iter(stream), 100)]
    assert names == ["z", "abc", "d", "ef", "g"]
    assert list(bucketed([], 100)) == []
