"""What a token of a step costs as a step grows. Prints one JSON line.

usage: OMP_NUM_THREADS=1 python scripts/bench/scaling.py [--axes samples,length,vocab] [--samples N,N,..]
                                                         [--length N,N,..] [--vocab N,N,..] [--repeats N] [--ranks 1,2]

packing.py's model of 0.9M parameters on one process. Along each axis one size of a step grows from a base of 64
samples, responses of 16 tokens and a vocabulary of 512. Prompts have 8 to 16 tokens and 8 responses each; a response
has exactly `length` tokens. A step is the rollout of the hf engine (batches of 128 responses), then the training part:
log-probabilities and values of the whole rollout, one epoch of actor and critic updates of 64 samples, in packed rows
of 2,048 tokens.

`train_us` are microseconds of the training part a token (prompt and response), `rollout_us` of the engine a sampled
token: medians of rounds in which all sizes take turns. `cpu_us` are microseconds of processor time a token for both
together, which other work on the machine disturbs less; of one thread, that is: several wait for each other at work.
`spread` is the largest of an axis over its smallest: 1 is a cost per token that does not grow. Along `vocab` it has to,
with the output layer's work; along `length` attention's does, and short updates have Adam's step to pay.

`rss_growth_mb` is what the process's memory at its highest gained by the first step of a size over that of a warm-up
step of 64 samples. It is printed along `samples`, whose sizes come first and grow.

--ranks measures the largest size of `samples` alone, on each number of ranks in turn, of one thread each, under
torchrun: the same step split over the ranks. `speedup` is the seconds of the first number over those of each;
`cpu_us` and `rss_growth_mb` are the first rank's.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from packing import MODEL, build, configuration, step

from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.parallel.mesh import Mesh, destroy_mesh, leave_together
from nemo_simplerl.rollout.base import Completion, SamplingParams
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.setup.prepare import create_model
from nemo_simplerl.trainer.setup.world import mesh_of

SIZES = {"samples": "256,1024,4096", "length": "64,128,256", "vocab": "512,4096,32768"}
ROW_TOKENS, PROMPT_TOKENS, SAMPLES_PER_PROMPT, BATCH = 2048, (8, 16), 8, 128
WARM_UP = 64  # samples


@dataclass(frozen=True)
class Point:
    """The size of a step."""

    samples: int
    length: int
    vocab: int


BASE = Point(samples=64, length=16, vocab=512)


@dataclass(frozen=True)
class Taken:
    """One step of this rank: its seconds, and the number of tokens of all ranks in it."""

    rollout: float
    train: float
    cpu: float
    sampled: int
    tokens: int
    peak_rss: float  # MB, of the process until then


@dataclass(frozen=True)
class Roles:
    actor: Actor
    critic: Critic
    engine: HfEngine
    mesh: Mesh


def main() -> None:
    args = arguments()
    report = strong_scaling(args) if args.ranks else along_axes(args)
    if report is not None:
        print(json.dumps({"bench": "scaling", "threads": torch.get_num_threads(), **report}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(SIZES))
    for axis, sizes in SIZES.items():
        parser.add_argument(f"--{axis}", type=numbers, default=numbers(sizes))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=numbers, default=[])
    args = parser.parse_args()
    if odd := sorted(set(args.axes.split(",")) - set(SIZES)):
        parser.error(f"--axes knows {', '.join(SIZES)}, not {', '.join(odd)}")
    args.axes = [axis for axis in SIZES if axis in args.axes.split(",")]
    if odd := [size for size in args.samples if size % WARM_UP]:
        parser.error(f"--samples must be multiples of an update's {WARM_UP}, not {odd}")
    return args


def numbers(text: str) -> list[int]:
    return sorted(map(int, text.split(",")))


def along_axes(args: argparse.Namespace) -> dict | None:
    points = {axis: [replace(BASE, **{axis: size}) for size in getattr(args, axis)] for axis in args.axes}
    everything = list(dict.fromkeys(point for of_axis in points.values() for point in of_axis))
    taken, rss_before, is_first = measure(everything, args.repeats)
    if not is_first:
        return None
    rows = {axis: [figures(point, taken[point]) for point in of_axis] for axis, of_axis in points.items()}
    for row, point in zip(rows.get("samples", []), points.get("samples", []), strict=True):
        row["rss_growth_mb"] = round(taken[point][0].peak_rss - rss_before, 1)
    costs = ("train_us", "rollout_us", "cpu_us")
    spread = {
        axis: {cost: round(max(row[cost] for row in of_axis) / min(row[cost] for row in of_axis), 3) for cost in costs}
        for axis, of_axis in rows.items()
    }
    return {"repeats": args.repeats, "spread": spread, **rows}


def strong_scaling(args: argparse.Namespace) -> dict:
    """Figures for each number of ranks: torchrun starts this file with as many."""
    found = {}
    for ranks in args.ranks:
        world = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run(
            [*world, __file__, "--axes=samples", f"--samples={args.samples[-1]}", f"--repeats={args.repeats}"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            raise SystemExit(f"{ranks} ranks ended with exit code {done.returncode}; their messages are above.")
        found[ranks] = json.loads(done.stdout.splitlines()[-1])["samples"][0]
    first = found[args.ranks[0]]
    speedup = {
        ranks: {cost: round(first[cost] / row[cost], 3) for cost in ("train_us", "rollout_us")}
        for ranks, row in found.items()
    }
    return {"repeats": args.repeats, "speedup": speedup, "ranks": found}


def measure(points: list[Point], repeats: int) -> tuple[dict[Point, list[Taken]], float, bool]:
    """Steps of every point, the memory in MB before the first of them, and whether this rank is the first."""
    built: dict[int, Roles] = {}
    taken: dict[Point, list[Taken]] = {point: [] for point in points}
    built[points[0].vocab] = roles_of(points[0].vocab)
    take(built[points[0].vocab], replace(points[0], samples=WARM_UP))
    rss_before, is_first = peak_rss(), dist.get_rank() == 0
    for _ in range(repeats):
        for point in points:
            if point.vocab not in built:
                built[point.vocab] = roles_of(point.vocab)
                take(built[point.vocab], replace(point, samples=WARM_UP))
            taken[point].append(take(built[point.vocab], point))
            if is_first:
                print(point, taken[point][-1], file=sys.stderr)
    leave_together()
    destroy_mesh()
    return taken, rss_before, is_first


def roles_of(vocab: int) -> Roles:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        create_model(path, replace(MODEL, vocab_size=vocab), ["one two three"], seed=0)
        config = configuration(path, ROW_TOKENS)
        mesh = mesh_of(config.actor, config.trainer.distributed_timeout_s)
        actor, critic = build(config, path, mesh)
        engine = HfEngine(path, tokenizer=None, max_batch_size=BATCH)
    engine.refit(actor.hf_buckets(2**24), 0)
    return Roles(actor, critic, engine, mesh)


def take(roles: Roles, point: Point) -> Taken:
    """This rank's share of a step. Collective."""
    rank, world_size = roles.mesh.rank, roles.mesh.world_size
    prompts = random_prompts(point)[rank::world_size]
    seeds = list(range(rank, point.samples, world_size))
    params = SamplingParams(
        n=SAMPLES_PER_PROMPT, max_tokens=point.length, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=()
    )
    dist.barrier()
    began, cpu_began = time.perf_counter(), time.process_time()
    completions = roles.engine.generate(prompts, params, seeds)
    dist.barrier()
    sampled = time.perf_counter()
    batch = batch_of(prompts, completions)
    step(roles.actor, roles.critic, batch)
    dist.barrier()
    return Taken(
        rollout=sampled - began,
        train=time.perf_counter() - sampled,
        cpu=time.process_time() - cpu_began,
        sampled=point.samples * point.length,
        tokens=point.samples * point.length + SAMPLES_PER_PROMPT * sum(map(len, random_prompts(point))),
        peak_rss=peak_rss(),
    )


def random_prompts(point: Point) -> list[list[int]]:
    rng = random.Random(1234)
    return [
        rng.choices(range(point.vocab), k=rng.randint(*PROMPT_TOKENS))
        for _ in range(point.samples // SAMPLES_PER_PROMPT)
    ]


def batch_of(prompts: list[list[int]], completions: list[Completion]) -> Batch:
    return collate(
        [prompt for prompt in prompts for _ in range(SAMPLES_PER_PROMPT)],
        completions,
        [1.0] * len(completions),
        pad_id=0,
        truncated="penalize",
        overwrite_truncated_with_eos=None,
        device="cpu",
    )


def figures(point: Point, taken: list[Taken]) -> dict:
    return {
        "samples": point.samples,
        "length": point.length,
        "vocab": point.vocab,
        "tokens": taken[0].tokens,
        "train_us": round(1e6 * statistics.median(one.train for one in taken) / taken[0].tokens, 2),
        "rollout_us": round(1e6 * statistics.median(one.rollout for one in taken) / taken[0].sampled, 2),
        "cpu_us": round(1e6 * statistics.median(one.cpu for one in taken) / taken[0].tokens, 2),
        "all_seconds": [[round(one.train, 3), round(one.rollout, 3)] for one in taken],
    }


def peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
