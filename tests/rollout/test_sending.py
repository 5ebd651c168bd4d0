"""Refits of engines on ranks of their own: the same weights as on shared ranks, and one end for all whatever fails."""

import re
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.export import HfExport
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.rollout import sending
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.sending import receive, send
from nemo_simplerl.trainer.setup.world import world_of
from support.links import Linked, flipped, on
from support.memory import Memory
from support.ranks import run_ranks
from support.tiny import layout, save_hf_model, small_config

UP = "model.layers.1.mlp.up_proj.weight"
PARAMS = SamplingParams(n=1, max_tokens=4, temperature=0.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
LARGEST_COPY = 128 * 64 * 4  # of a layer's query, key and value weights, which lie interleaved in one parameter


class Side:
    """This rank's part of an actor on the first ranks, or of the engines on the last ones."""

    def __init__(self, folder, actor_ranks: str, tp: int, pp: int, dtype: torch.dtype, bucket_bytes: int):
        sizes = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
        config = small_config(str(folder), sizes, {"advantage": "group"})
        self.world = world_of(replace(config, placement=replace(config.placement, actor=actor_ranks)))
        self.rank, self.mesh, self.bucket_bytes = self.world.rank, self.world.actor, bucket_bytes
        self.sends, self.receives = self.mesh.is_member, self.world.engine.is_member
        self.gpt = self.engine = None
        if self.sends:
            source = open_source(folder)
            self.hf = source.hf
            self.gpt = build_gpt_model(self.hf, layout(tp, pp), self.mesh, dtype=dtype, transformer_engine=False)
            load_weights(self.gpt, source, self.mesh)
        if self.receives:
            self.engine = HfEngine(folder, tokenizer=None, max_batch_size=4, dtype=dtype)

    def export(self) -> HfExport:
        return HfExport(self.gpt, self.hf, self.mesh, self.bucket_bytes)

    def refit(self, version, *, engine=None, export=None, verify=True) -> dict[str, float]:
        if self.receives:
            return receive(
                engine or self.engine, version, verify=verify, group=self.world.refit, device=self.mesh.device
            )
        if self.sends and self.mesh.dp_rank == 0:
            export = export or self.export()
            return send(export, version, verify=verify, group=self.world.refit, replica=self.mesh.model)
        return {}

    def sampled_version(self):
        if not self.receives:
            return None
        try:
            [completion] = self.engine.generate([[5, 9]], PARAMS, [0])
            return completion.weight_version
        except RuntimeError as error:
            return str(error)


def three_refits(folder, actor_ranks, tp, pp, dtype, bucket_bytes):
    """Metrics, digests of what the engine holds, the most bytes of tensors beside the models; the buckets' bytes."""
    side = Side(folder, actor_ranks, tp, pp, dtype, bucket_bytes)
    models = [model for model in (side.gpt, side.engine and side.engine._model) if model is not None]
    peaks = []
    for version in range(3):
        with Memory(*models) as memory:
            metrics = side.refit(version)
        peaks.append(memory.peak)
    held, sizes = {}, []
    if side.engine is not None:
        held = {name: digest(param) for name, param in side.engine._model.named_parameters()}
    if side.sends:
        sizes = [sum(tensor.nbytes for _, tensor in bucket) for bucket in side.export().contents]
    return metrics, held, min(peaks), sizes


@pytest.mark.parametrize(
    ("actor_ranks", "tp", "pp", "tied", "dtype", "bucket_bytes"),
    [
        pytest.param("0-1", 2, 1, False, torch.float32, 100_000, id="TP2 and an engine"),
        pytest.param("0-1", 1, 2, True, torch.bfloat16, 50_000, id="PP2, tied, in bf16, and an engine"),
        pytest.param("0-1", 1, 1, False, torch.float32, 100_000, id="DP2 and an engine"),
        pytest.param("0", 1, 1, True, torch.float32, 20_000, id="one rank and two engines, parameters beyond a bucket"),
    ],
)
def test_engines_elsewhere_hold_the_actors_weights_and_two_buckets_are_in_memory(
    tmp_path, actor_ranks, tp, pp, tied, dtype, bucket_bytes
):
    folder = save_hf_model(tmp_path / "model", tied=tied)
    weights = load_file(folder / "model.safetensors")
    originals = {name: digest(tensor.to(dtype)) for name, tensor in weights.items()}
    sender, *others = run_ranks(three_refits, 3, folder, actor_ranks, tp, pp, dtype, bucket_bytes)
    metrics, _, peak, sizes = sender
    assert metrics == {
        "refit/version": 2,
        "refit/buckets": len(sizes),
        "refit/bytes": sum(tensor.to(dtype).nbytes for tensor in weights.values()),
        "refit/verified": 1,
    }
    assert len(sizes) > 6 and others[0][0] in (metrics, {})
    padding = 16 * 40
    assert peak <= 2 * (max(sizes) + padding) + 3 * LARGEST_COPY, "beside two buckets only a parameter in the making"
    engines = [answer for answer in others if answer[1]]
    assert engines
    for found, held, peak, _ in engines:
        assert found == metrics and held == originals
        assert peak <= 2 * (max(sizes) + padding) + 8192
    if tp == pp == 1 and len(engines) == 1:
        assert others[0][0] == {} and others[0][2] == 0, "a replica that does not send does nothing"


def no_room(*_):
    raise MemoryError("no room")


def damaged_arrivals(route):
    for number in range(len(route._forms)):
        route.begin()
        yield [(name, flipped(tensor) if name == UP else tensor) for name, tensor in route.bucket(number)]


def midway(bucket, number):
    if number == 2:
        no_room()
    return bucket


def sleeping(seconds):
    def fault(bucket, number):
        time.sleep(seconds)
        return bucket

    return fault


class Failing:
    """An export that fails to make a tensor of its third bucket, or is slow."""

    def __init__(self, export, fault):
        self._export, self._fault = export, fault
        self.has_buffer, self.device = export.has_buffer, export.device

    @property
    def contents(self):
        return self._export.contents

    def __iter__(self):
        for number, tensors in enumerate(self._export):
            yield self._made(tensors, number)

    def _made(self, tensors, number):
        for item in tensors:
            self._fault(item, number)
            yield item


def attempts(side):
    """Refits in which one rank goes wrong: what every rank must be told ("" where nothing fails), and the refit."""
    is_sender, is_last, engine = side.rank == 0, side.rank == 2, side.engine

    def patched(is_here, owner, name, value):
        with pytest.MonkeyPatch.context() as monkeypatch:
            if is_here:
                monkeypatch.setattr(owner, name, value)
            return side.refit(2)

    changed = on(UP, lambda name, tensor: [(name, flipped(tensor))])
    for fault, told in (
        (midway, "rank 2: MemoryError: no room"),
        (changed, f"rank 2: the engine holds other values.*{UP}"),
        (on(UP, lambda name, tensor: []), f"rank 2: ValueError: .*missing {UP}"),
        (sleeping(0.02), ""),
    ):
        yield told, lambda fault=fault: side.refit(2, engine=WakingLink(engine, fault) if is_last else None)
    yield "rank 2: was asked for version 8, rank 0 for 2", lambda: side.refit(8 if is_last else 2)
    for fault, told in ((midway, "rank 0: MemoryError: no room"), (sleeping(0.005), "")):
        yield told, lambda fault=fault: side.refit(2, export=Failing(side.export(), fault) if is_sender else None)
    yield "rank 2: MemoryError: no room", lambda: patched(is_last, engine, "wake", no_room)
    yield "rank 0: MemoryError: no room", lambda: patched(is_sender, sending, "_Route", no_room)
    yield "rank 0: MemoryError: no room", lambda: patched(is_sender, sending, "_views", no_room)
    told = f"rank 2: was sent other weights than rank 0: {UP}"
    yield told, lambda: patched(is_last, sending._Route, "arriving", damaged_arrivals)
    if side.world.places.actor == range(2):
        bad = ending_badly(HfExport.__iter__)
        told = "rank 0: rank 1 of its replica: MemoryError: no room"
        yield told, lambda: patched(side.rank == 1, HfExport, "__iter__", bad)


def ending_badly(iterate):
    def changed(export):
        yield from iterate(export)
        no_room()

    return changed


class WakingLink(Linked):
    def wake(self):
        self.engine.wake()


def ends(folder, actor_ranks, tp):
    """For each attempt: the expected and the found end, which weights are sampled from then, and after a good refit."""
    side = Side(folder, actor_ranks, tp, 1, torch.float32, 100_000)
    side.refit(1)
    answers = []
    for number, (told, attempt) in enumerate(attempts(side)):
        try:
            heard = str(attempt())
        except RuntimeError as error:
            heard = str(error)
        before = side.sampled_version()
        side.refit(10 + number, verify=number % 2 == 0)
        answers.append((told, heard, before, side.sampled_version()))
    return answers


@pytest.mark.parametrize(("actor_ranks", "tp"), [("0-1", 2), ("0", 1)])
def test_an_error_at_either_end_ends_the_refit_on_all_ranks_and_none_generates(tmp_path, actor_ranks, tp):
    folder = save_hf_model(tmp_path / "model")
    answers = run_ranks(ends, 3, folder, actor_ranks, tp, timeout_s=120)
    assert len({len(answer) for answer in answers}) == 1 and len(answers[0]) > 9
    for number, of_ranks in enumerate(zip(*answers, strict=True)):
        told, heard, _, _ = of_ranks[0]
        for rank, (_, other, before, after) in enumerate(of_ranks):
            assert other == heard or (not told and other == "{}"), f"rank {rank}"
            assert re.search(told or "refit/version", heard), heard
            if rank == 2:
                assert "refuses to generate" in str(before) if told else before == 2
                assert after == 10 + number
