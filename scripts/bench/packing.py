"""Packed passes beside padded ones, on one process. Prints one JSON line.

usage: OMP_NUM_THREADS=2 python scripts/bench/packing.py [--samples N] [--tokens N] [--repeats N]

A Qwen2 of 0.9M parameters (4 layers, hidden 128) passes over prompts of 40 to 56 tokens with responses of geometric
length (mean 96, cut at 256): log-probabilities and values of the whole rollout, then one epoch of actor and critic
updates of 64 samples. `padded` rows are as wide as the rollout's longest, 16 a micro-batch; `trimmed` ones as wide as
their own longest, the rows of an update sorted by length (what micro_batch_size gives); `packed` ones hold up to
--tokens tokens without padding. The kinds take turns; medians.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.schema import Config, CreateConfig
from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import destroy_mesh
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.build import build_learner
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.setup.prepare import create_model
from nemo_simplerl.trainer.setup.world import mesh_of

MODEL = CreateConfig(
    hidden_size=128,
    num_layers=4,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=384,
    vocab_size=512,
    max_position_embeddings=320,
    share_embeddings_and_output_weights=False,
)
ROWS, UPDATE = 16, 64


@dataclass(frozen=True)
class Response:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str = "stop"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        create_model(path, MODEL, ["one two three"], seed=0)
        kinds = {
            "padded": configuration(path, None),
            "trimmed": configuration(path, None),
            "packed": configuration(path, args.tokens),
        }
        mesh = mesh_of(kinds["packed"].actor, timeout_s=600)
        roles = {kind: build(config, path, mesh) for kind, config in kinds.items()}
    batch = rollout(args.samples)
    widest = replace(batch, lengths_B=torch.full_like(batch.lengths_B, batch.tokens_BS.shape[1]))
    batches = {"padded": widest, "trimmed": batch, "packed": batch}
    seconds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for kind in kinds:
        step(*roles[kind], batches[kind])  # the first pass allocates
    for _ in range(args.repeats):
        for kind in kinds:
            seconds[kind].append(step(*roles[kind], batches[kind]))
    destroy_mesh()
    medians = {
        kind: {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
        for kind, runs in seconds.items()
    }
    totals = {kind: sum(phases.values()) for kind, phases in medians.items()}
    real = int(batch.lengths_B.sum())
    print(
        json.dumps(
            {
                "bench": "packing",
                "threads": torch.get_num_threads(),
                "samples": args.samples,
                "tokens": real,
                "padded_tokens": batch.tokens_BS.numel(),
                "seconds": {kind: {k: round(v, 3) for k, v in phases.items()} for kind, phases in medians.items()},
                "packed_over_padded": round(totals["padded"] / totals["packed"], 2),
                "packed_over_trimmed": round(totals["trimmed"] / totals["packed"], 2),
                "all_seconds": [[round(sum(run.values()), 3) for run in runs] for runs in seconds.values()],
            }
        )
    )


def configuration(path: Path, tokens: int | None) -> Config:
    sizes = {"micro_batch_size": ROWS, "forward_micro_batch_size": ROWS, "global_batch_size": UPDATE}
    packed = dict.fromkeys(("micro_batch_tokens", "forward_micro_batch_tokens"), "null" if tokens is None else tokens)
    values = {f"{role}.{key}": value for role in ("actor", "critic") for key, value in (sizes | packed).items()}
    keys = [f"{key}={value}" for key, value in values.items()]
    return compose(
        ["experiment=quickstart", f"model.path={path}", "model.create=null", "algo.ratio_tolerance=null", *keys]
    )


def build(config: Config, path: Path, mesh) -> tuple[Actor, Critic]:
    learners = [
        build_learner(
            open_source(path),
            config.model,
            config.actor,
            config.actor.optim,
            mesh,
            total_updates=1000,
            deterministic=config.trainer.deterministic,
            critic_seed=seed,
        )
        for seed in (None, config.trainer.seed)
    ]
    timer = PhaseTimer()
    longest = config.rollout.max_response_tokens
    hf, algo = read_hf_config(path), config.algo
    actor = Actor(learners[0], hf, config.actor, algo, temperature=1.0, max_response_tokens=longest, timer=timer)
    return actor, Critic(learners[1], config.critic, algo, max_response_tokens=longest, timer=timer)


def rollout(samples: int) -> Batch:
    rng = random.Random(4321)
    prompts = [tuple(rng.choices(range(4, 512), k=rng.randint(40, 56))) for _ in range(samples)]
    lengths = [int(torch.distributions.Geometric(1 / 96).sample()) + 1 for _ in range(samples)]
    responses = [
        Response(tuple(rng.choices(range(4, 512), k=n)), (0.0,) * n) for n in (min(length, 256) for length in lengths)
    ]
    return collate(
        prompts,
        responses,
        [1.0] * samples,
        pad_id=0,
        truncated="penalize",
        overwrite_truncated_with_eos=None,
        device="cpu",
    )


def step(actor: Actor, critic: Critic, batch: Batch) -> dict[str, float]:
    """Seconds of each pass over the rollout."""
    marks = [time.perf_counter()]
    old_logprobs_BT = actor.logprobs(batch)
    marks.append(time.perf_counter())
    values_BT = critic.values(batch)
    marks.append(time.perf_counter())
    ones_BT = torch.ones_like(batch.mask_BT)
    actor.update(batch, old_logprobs_BT, old_logprobs_BT, ones_BT, ones_BT)
    marks.append(time.perf_counter())
    critic.update(batch, values_BT, ones_BT)
    marks.append(time.perf_counter())
    names = ("logprobs", "values", "actor_update", "critic_update")
    return {name: end - start for name, start, end in zip(names, marks, marks[1:], strict=False)}


if __name__ == "__main__":
    torch.manual_seed(4321)
    main()
