"""Refits on several ranks: the same weights in every layout, no more memory than two buckets, one verdict of all."""

import re

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.export import hf_buckets
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import build_mesh
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.refit import verified_refit
from support.links import Linked, flipped, on
from support.memory import Memory
from support.ranks import run_ranks
from support.tiny import layout, save_hf_model

BUCKET_BYTES = 100_000
PARAMS = SamplingParams(n=1, max_tokens=4, temperature=0.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
UP = "model.layers.1.mlp.up_proj.weight"
ORDER = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{name}"
        for layer in range(4)
        for name in (
            "input_layernorm.weight",
            "self_attn.o_proj.weight",
            *(f"self_attn.{x}_proj.{kind}" for kind in ("weight", "bias") for x in "qkv"),
            "post_attention_layernorm.weight",
            *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
        )
    ),
    "model.norm.weight",
    "lm_head.weight",
]
LARGEST_COPY = 128 * 64 * 4  # of a layer's query, key and value weights, which lie interleaved in one parameter


class Side:
    """One rank's part of an actor in a layout, and its engine."""

    def __init__(self, folder, tp: int, pp: int = 1):
        self.mesh = build_mesh(
            tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=1, timeout_s=60
        )
        source = open_source(folder)
        self.hf = source.hf
        self.gpt = build_gpt_model(self.hf, layout(tp, pp), self.mesh, dtype=torch.float32, transformer_engine=False)
        load_weights(self.gpt, source, self.mesh)
        self.engine = HfEngine(folder, tokenizer=None, max_batch_size=4)

    def buckets(self):
        return hf_buckets(self.gpt, self.hf, self.mesh, BUCKET_BYTES)

    def refit(self, version, engine=None, buckets=None):
        return verified_refit(
            engine or self.engine, buckets or self.buckets(), version, verify=True, group=dist.group.WORLD
        )


def refit_in_layout(folder, tp, pp):
    """The buckets of a refit, and the most bytes of tensors that it needs beside the two models."""
    side = Side(folder, tp, pp)
    buckets = [[(name, tensor.nbytes, digest(tensor)) for name, tensor in bucket] for bucket in side.buckets()]
    peaks = []
    for version in range(3):
        with Memory(side.gpt, side.engine._model) as memory:
            side.refit(version)
        peaks.append(memory.peak)
    return buckets, min(peaks)  # gloo's own thread may hold on to a buffer for a moment


@pytest.mark.parametrize(("tp", "pp", "tied"), [(1, 1, False), (2, 1, False), (2, 2, True)])
def test_every_layout_sends_the_same_weights_and_two_buckets_are_alive(tmp_path, tp, pp, tied):
    folder = save_hf_model(tmp_path / "model", tied=tied)
    originals = {name: digest(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    answers = run_ranks(refit_in_layout, tp * pp, folder, tp, pp)
    for buckets, peak in answers:
        sent = {name: value for bucket in buckets for name, _, value in bucket}
        assert sent == originals
        assert buckets == answers[0][0], "the same order on every rank"
        assert list(sent) == ORDER[: len(sent)]
        sizes = [sum(size for _, size, _ in bucket) for bucket in buckets]
        assert len(sizes) > 6
        assert max(sizes) <= BUCKET_BYTES
        assert peak <= 2 * max(sizes) + LARGEST_COPY + 4096
        if tp == pp == 1:
            assert peak < 2 * LARGEST_COPY + 8192, "only what is interleaved is copied"


def change_one_weight(side):
    """Flip the last bit of a weight on rank 1: its replica has drifted apart."""
    param = dict(side.gpt.named_parameters())["decoder.layers.1.mlp.linear_fc2.weight"]
    with torch.no_grad():
        param.copy_(flipped(param, 0))


def midway(bucket, number):
    if number == 2:
        raise MemoryError("no room")
    return bucket


def with_a_second_refit(side):
    for number, bucket in enumerate(side.buckets()):
        yield bucket
        if number == 1 and side.mesh.rank == 1:
            with pytest.raises(RuntimeError, match="still running"):
                side.engine.refit([], 7)


def refit_without_room(side, is_broken):
    """A refit in which no tensor can be made of the shards that have come: others gather the next ones all the same."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if is_broken:
            monkeypatch.setattr(hf_map, "split", lambda *_: midway(None, 2))
        return side.refit(2)


def attempts(side, is_broken):
    """Refits that fail where `is_broken`, each with the message that every rank must get."""
    for fault, told in (
        (on(UP, lambda name, tensor: [(name, flipped(tensor))]), f"rank 1: the engine holds other values.*{UP}"),
        (on(UP, lambda name, tensor: []), f"rank 1: ValueError: .*missing {UP}"),
        (midway, "rank 1: MemoryError: no room"),
    ):
        yield told, lambda fault=fault: side.refit(2, engine=Linked(side.engine, fault) if is_broken else None)
    yield "rank 1: was asked for version 8, rank 0 for 2", lambda: side.refit(8 if is_broken else 2)
    yield "rank 1: RuntimeError: .*began before", lambda: side.refit(2, buckets=with_a_second_refit(side))
    yield "rank 1: MemoryError: no room", lambda: refit_without_room(side, is_broken)
    if is_broken:
        side.engine.sleep()
    yield "rank 1: RuntimeError: the engine is asleep", lambda: side.refit(2)
    side.engine.wake()


def verdicts(folder, tp):
    """For each attempt: the expected and the found message, whether the engine refuses, and a good refit's version."""
    side = Side(folder, tp)
    answers = []
    side.refit(1)
    for told, attempt in attempts(side, side.mesh.rank == 1):
        heard, refusal = _error_of(attempt), _error_of(lambda: side.engine.generate([[5, 9]], PARAMS, [0]))
        side.engine.wake()
        side.refit(3)
        [completion] = side.engine.generate([[5, 9]], PARAMS, [0])
        answers.append((told, heard, refusal, completion.weight_version))
    if tp == 1 and side.mesh.rank == 1:
        change_one_weight(side)
    answers.append(_error_of(lambda: side.refit(4)))
    return answers


def _error_of(call):
    try:
        return str(call())
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("tp", [1, 2])
def test_what_goes_wrong_on_one_rank_is_heard_on_all_and_none_generates(tmp_path, tp):
    folder = save_hf_model(tmp_path / "model")
    (*first, first_end), (*second, second_end) = run_ranks(verdicts, 2, folder, tp)
    assert len(first) == 7
    for (told, heard, refusal, version), other in zip(first, second, strict=True):
        assert re.search(told, heard), heard
        assert "rank 0:" not in heard
        assert other[1] == heard
        assert "refuses to generate" in refusal
        assert "refuses to generate" in other[2] or "asleep" in other[2]
        assert version == other[3] == 3
    assert first_end == second_end
    if tp == 1:
        assert "rank 1: was sent other weights than rank 0: model.layers.1.mlp.down_proj.weight." in first_end
