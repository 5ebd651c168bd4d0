"""A refit of the embedded engine, with and without verification, against a plain copy. Prints one JSON line.

usage: [torchrun --nproc_per_node N] scripts/bench/refit.py [TP [PP [BUCKET_MB [ENGINES]]]]     (default: 1 1 16 0)

ENGINES: the last ranks hold an engine each, and the others the actor; 0: every rank holds both.

The model is random, 300 MB in float32. `copy_bytes_per_second` is the speed of `target.copy_(source)`, tensor by
tensor, between full tensors on the same device; with ENGINES it is that of a plain broadcast of as many bytes, bucket
by bucket, to the ranks of the engines. `ratio` is the verified refit's speed over it, `digest_share` the share of its
time that a refit without digests saves. The kinds of run take turns, and the fastest of each counts. `peak_bytes` is
the peak of the tensors of one refit beside the models; of several ranks rank 0 is measured. `bytes_moved`, with
ENGINES, are those that each engine's rank receives, beside the least that it could, `bytes`.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config

from nemo_simplerl.config.load import compose
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.export import HfExport, hf_buckets
from nemo_simplerl.parallel.mesh import Mesh, destroy_mesh, leave_together
from nemo_simplerl.rollout.elsewhere import EngineElsewhere
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.rollout.sending import receive, send
from nemo_simplerl.trainer.setup.world import World, world_of

REPEATS = 15
MODEL = Qwen2Config(
    vocab_size=16384,
    hidden_size=1024,
    intermediate_size=2432,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)
HF = MODEL.to_dict()


def main(tp: int = 1, pp: int = 1, bucket_mb: int = 16, num_engines: int = 0) -> None:
    world = joined(tp, pp, num_engines)
    mesh, max_bytes = world.actor, bucket_mb * 2**20
    engine = engine_on(mesh.device) if world.engine.is_member else EngineElsewhere()
    actor = SimpleNamespace(mesh=mesh)
    if mesh.is_member:
        gpt = random_actor(tp, pp, mesh)
        actor.export = partial(HfExport, gpt, HF, mesh)
        actor.hf_buckets = partial(hf_buckets, gpt, HF, mesh)

    def refit(verify: bool) -> dict[str, float]:
        if world.engine.is_member and mesh.is_member:
            return verified_refit(engine, actor.hf_buckets(max_bytes), 1, verify=verify, group=world.engine.role)
        if world.engine.is_member:
            return receive(engine, 1, verify=verify, group=world.refit, device=mesh.device)
        if mesh.is_member and mesh.dp_rank == 0:
            return send(actor.export(max_bytes), 1, verify=verify, group=world.refit, replica=mesh.model)
        return {}

    with counted_broadcasts(world.refit) as moved:
        metrics = refit(True)
    least = plain_copy(actor) if num_engines == 0 else plain_broadcast(world, metrics, max_bytes)
    runs = {"unverified": lambda: refit(False), "verified": lambda: refit(True), "copy": least}
    _, peak_bytes = least(), peak_of(runs["verified"], mesh.device)
    rounds = [{name: seconds_of(run, mesh.device) for name, run in runs.items()} for _ in range(REPEATS)]
    best = {name: min(seconds[name] for seconds in rounds) for name in runs}
    if mesh.rank == 0:
        num_bytes = metrics["refit/bytes"]
        line = {
            "bench": "refit",
            "device": str(mesh.device),
            "threads": torch.get_num_threads(),
            "layout": f"TP{tp} x PP{pp} x DP{mesh.dp_size}",
            "engines": num_engines,
            "bytes": int(num_bytes),
            "buckets": int(metrics["refit/buckets"]),
            "seconds": {name: round(value, 4) for name, value in best.items()},
            "digest_share": round(1 - best["unverified"] / best["verified"], 3),
            "bytes_per_second": round(num_bytes / best["verified"]),
            "copy_bytes_per_second": round(num_bytes / best["copy"]),
            "ratio": round(best["copy"] / best["verified"], 3),
            "peak_bytes": peak_bytes,
        }
        print(json.dumps(line | ({"bytes_moved": sum(moved)} if num_engines else {})))
    leave_together()
    destroy_mesh()


def joined(tp: int, pp: int, num_engines: int) -> World:
    overrides = ["experiment=quickstart", "algo.advantage=group", "trainer.distributed_timeout_s=600"]
    overrides += [f"actor.tensor_model_parallel_size={tp}", f"actor.pipeline_model_parallel_size={pp}"]
    config, world_size = compose(overrides), int(os.environ.get("WORLD_SIZE", "1"))
    if num_engines:
        actors = f"0-{world_size - num_engines - 1}"
        config = replace(config, placement=replace(config.placement, actor=actors))
    return world_of(config)


def engine_on(device: torch.device) -> HfEngine:
    with tempfile.TemporaryDirectory() as folder:
        MODEL.save_pretrained(folder)
        return HfEngine(folder, tokenizer=None, max_batch_size=1, device=device)


def plain_copy(actor: SimpleNamespace) -> Callable[[], None]:
    """Copies each full tensor on this rank."""
    sources = [tensor.clone() for bucket in actor.hf_buckets(2**28) for _, tensor in bucket]
    targets = [torch.zeros_like(source) for source in sources]

    def copy() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return copy


def plain_broadcast(world: World, metrics: dict[str, float], max_bytes: int) -> Callable[[], None]:
    """Broadcasts as many bytes as a refit's from rank 0, nothing else, until all ranks of engines have them."""
    parts = torch.zeros(int(metrics.get("refit/bytes", 0)), dtype=torch.uint8, device=world.actor.device).split(
        max_bytes
    )

    def broadcast() -> None:
        for part in parts if world.refit is not None else ():
            dist.broadcast(part, 0, group=world.refit)
        if world.refit is not None:
            dist.barrier(world.refit)

    return broadcast


@contextmanager
def counted_broadcasts(group: dist.ProcessGroup | None) -> Iterator[list[int]]:
    """The bytes of each broadcast in the group that begins inside."""
    moved, broadcast = list[int](), dist.broadcast

    def counted(tensor: torch.Tensor, *args, **kwargs):
        if group is not None and kwargs.get("group") is group:
            moved.append(tensor.nbytes)
        return broadcast(tensor, *args, **kwargs)

    dist.broadcast = counted
    try:
        yield moved
    finally:
        dist.broadcast = broadcast


def random_actor(tp: int, pp: int, mesh: Mesh) -> torch.nn.Module:
    sizes = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
    config = compose(["experiment=quickstart", *(f"actor.{name}={size}" for name, size in sizes.items())])
    gpt = build_gpt_model(HF, config.actor, mesh, dtype=torch.float32, transformer_engine=False)
    for number, param in enumerate(gpt.parameters()):  # alike on the ranks of a data group
        torch.nn.init.normal_(param, generator=torch.Generator(mesh.device).manual_seed(number))
    return gpt


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    dist.barrier()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors beyond those that were alive before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
