"""A refit of the embedded engine, with and without verification, against a plain copy. Prints one JSON line.

usage: [torchrun --nproc_per_node N] scripts/bench/refit.py [TP [PP [BUCKET_MB]]]     (default: 1 1 16)

The model is random, 300 MB in float32. `copy_bytes_per_second` is the speed of `target.copy_(source)`, tensor by
tensor, between full tensors on the same device; `ratio` is the verified refit's speed over it, `digest_share` the share
of its time that a refit without digests saves. The kinds of run take turns, and the fastest of each counts.
`peak_bytes` is the peak of the tensors of one refit beside the two models; of several ranks rank 0 is measured.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config

from nemo_simplerl.config.load import compose
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.export import hf_buckets
from nemo_simplerl.parallel.mesh import Mesh, build_mesh, destroy_mesh, leave_together
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.refit import verified_refit

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


def main(tp: int = 1, pp: int = 1, bucket_mb: int = 16) -> None:
    mesh = build_mesh(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=1, timeout_s=600
    )
    with tempfile.TemporaryDirectory() as folder:
        MODEL.save_pretrained(folder)
        engine = HfEngine(folder, tokenizer=None, max_batch_size=1, device=mesh.device)
    gpt = random_actor(tp, pp, mesh)
    sources = [tensor.clone() for bucket in hf_buckets(gpt, HF, mesh, 2**28) for _, tensor in bucket]
    targets = [torch.zeros_like(source) for source in sources]

    def refit(verify: bool) -> dict[str, float]:
        buckets = hf_buckets(gpt, HF, mesh, bucket_mb * 2**20)
        return verified_refit(engine, buckets, 1, verify=verify, group=dist.group.WORLD)

    def copy() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    runs = {"unverified": lambda: refit(False), "verified": lambda: refit(True), "copy": copy}
    metrics, _, peak_bytes = refit(True), copy(), peak_of(runs["verified"], mesh.device)
    rounds = [{name: seconds_of(run, mesh.device) for name, run in runs.items()} for _ in range(REPEATS)]
    best = {name: min(seconds[name] for seconds in rounds) for name in runs}
    num_bytes = metrics["refit/bytes"]
    if mesh.rank == 0:
        print(
            json.dumps(
                {
                    "bench": "refit",
                    "device": str(mesh.device),
                    "threads": torch.get_num_threads(),
                    "layout": f"TP{tp} x PP{pp} x DP{mesh.dp_size}",
                    "bytes": int(num_bytes),
                    "buckets": int(metrics["refit/buckets"]),
                    "seconds": {name: round(value, 4) for name, value in best.items()},
                    "digest_share": round(1 - best["unverified"] / best["verified"], 3),
                    "bytes_per_second": round(num_bytes / best["verified"]),
                    "copy_bytes_per_second": round(num_bytes / best["copy"]),
                    "ratio": round(best["copy"] / best["verified"], 3),
                    "peak_bytes": peak_bytes,
                }
            )
        )
    leave_together()
    destroy_mesh()


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
