"""Completions from the engine's answer to the tensors of a batch, on several data ranks and without a model.

usage: scripts/bench/data_plane.py [--ranks N] [--samples N] [--tokens N] [--fixed]     (default: 2, 8192, 4096)

Each rank samples random tokens (`--fixed`: all of that length; else that many at most), journals and grades them, sends
them to the ranks that train on them, and makes its batch. Prints one JSON line:

peak_gb               largest resident memory of each rank, from the start of the process on
base_gb               the same before anything was sampled
bytes_per_token       bytes that all ranks sent of tokens and log-probabilities, over all response tokens
minimum_per_token     8 for each token that another rank trains on, over all response tokens
ns_per_token          processor time (of all threads) from what ranks hold to the batch, over the tokens of a rank's
                      batch; `exchange` is the part that packs, sends and receives, `collate` the part that pads
wall_ns_per_token     the same by the clock, waits for other ranks and for other work of the machine included
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from nemo_simplerl.data.batch import collate
from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.data.sampler import all_rows
from nemo_simplerl.eval.run import grade_sharded
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.distribute import generate_sharded
from nemo_simplerl.trainer.saving.journal import Journal
from nemo_simplerl.trainer.saving.record import StepKey, StepRecord

PROMPT = Prompt(Problem("", "", "1", None, None), "", tuple(range(64)))
N = 8  # samples of a prompt
WINDOW = 128  # samples of an update


class RandomEngine:
    """Answers random tokens, of which about every fourth is worth a letter of text."""

    batch_size = 128

    def __init__(self, is_fixed: bool):
        self._is_fixed = is_fixed

    def generate(self, prompts, params, seeds):
        rng = np.random.default_rng(seeds[0])
        lengths = np.full(len(seeds), params.max_tokens)
        if not self._is_fixed:
            lengths = rng.integers(1, params.max_tokens + 1, len(seeds))
        count = int(lengths.sum())
        return Completions.from_flat(
            rng.integers(0, 150_000, count, dtype=np.int32),
            -rng.random(count, dtype=np.float32),
            lengths,
            texts=["x" * (int(length) // 4) for length in lengths],
            is_stopped=lengths < params.max_tokens,
            versions=np.ones(len(seeds), np.int64),
            seeds=np.array(seeds),
        )


def grade(items) -> list[Grade]:
    return [Grade("correct" if len(text) % 2 else "incorrect", "ok", 0.0) for _, text, _ in items]


def measure(num_samples: int, num_tokens: int, is_fixed: bool, folder: Path | str) -> dict:
    """One rank's figures. Collective over the world, which must have been joined."""
    rank, size, world = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    base_gb = _peak_gb()
    params = SamplingParams(N, num_tokens, 1.0, 1.0, 0, (), ())
    prompts = [PROMPT] * (num_samples // N)
    seeds = list(range(num_samples))
    engine = RandomEngine(is_fixed)
    sampled = generate_sharded(engine, [prompt.token_ids for prompt in prompts], params, seeds, group=world)
    journal = Journal(Path(folder), world)
    record = StepRecord(StepKey(1, 1, "", ""), sampled)
    journal.write(record)
    record.grades = grades = grade_sharded(grade, prompts, sampled, world)
    journal.write(record)
    lengths = sampled.lengths.tolist()
    owners = all_rows(lengths, 1, 0, window=WINDOW, num_ranks=size)
    sent, isend = [], dist.isend
    dist.isend = lambda tensor, *given: sent.append(tensor.nbytes) or isend(tensor, *given)
    dist.barrier()
    started = _clocks()
    responses = sampled.to_owners(owners, world)
    arrived = _clocks()
    rows = owners[rank]
    batch = collate(
        [PROMPT.token_ids] * len(rows),
        responses,
        [float(grades[row].verdict == "correct") for row in rows],
        groups=[row // N for row in rows],
        pad_id=0,
        truncated="penalize",
        overwrite_truncated_with_eos=None,
        device="cpu",
    )
    ended = _clocks()
    dist.isend = isend
    own_tokens = int(sampled.lengths[rows].sum())
    assert int(batch.mask_BT.sum(dtype=torch.float64)) == own_tokens
    return {
        "base_gb": base_gb,
        "peak_gb": _peak_gb(),
        "sent": sum(sent),
        "must_arrive": 8 * int(sampled.lengths[rows][sampled.holders[rows] != rank].sum()),
        "tokens": sum(lengths),
        "ns": {"exchange": (arrived - started) * 1e9 / own_tokens, "collate": (ended - arrived) * 1e9 / own_tokens},
    }


def summary(found: list[dict]) -> dict:
    """The figures of all ranks as the one line that is printed."""
    tokens = found[0]["tokens"]
    return {
        "bench": "data_plane",
        "ranks": len(found),
        "response_tokens": tokens,
        "base_gb": [round(one["base_gb"], 3) for one in found],
        "peak_gb": [round(one["peak_gb"], 3) for one in found],
        "bytes_per_token": round(sum(one["sent"] for one in found) / tokens, 3),
        "minimum_per_token": round(sum(one["must_arrive"] for one in found) / tokens, 3),
        **{
            clock: {name: round(max(float(one["ns"][name][i]) for one in found), 2) for name in found[0]["ns"]}
            for i, clock in enumerate(("ns_per_token", "wall_ns_per_token"))
        },
    }


def _clocks() -> np.ndarray:
    """Seconds of the processor, and by the clock."""
    return np.array([time.process_time(), time.perf_counter()])


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--fixed", action="store_true")
    args = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        found: list = [None] * dist.get_world_size()
        mine = measure(args.samples, args.tokens, args.fixed, os.environ["JOURNAL"])
        dist.all_gather_object(found, mine)
        if dist.get_rank() == 0:
            print(json.dumps(summary(found)))
        dist.destroy_process_group()
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = {"JOURNAL": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.ranks}"]
        subprocess.run([*command, *sys.argv], env=os.environ | environment, check=True)


if __name__ == "__main__":
    main()
