"""This project's side of step.py: the trainer's own ppo_step on one rank, with the embedded engine."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import work

from nemo_simplerl.config.load import load
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.rollout.hf import engine
from nemo_simplerl.rollout.hf.sampling import uniforms
from nemo_simplerl.trainer.loop import ppo_step
from nemo_simplerl.trainer.open_run import open_run
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.setup.world import join_world

PASSES = ("old_logprobs", "reference_logprobs", "values")
UPDATES = ("actor_update", "critic_update")
TOKENS = 2048  # of a packed row


def main(model: str, variant: str, num_prompts: str, *overrides: str) -> None:
    turns = work.Turns()
    given = work.work_of(model, variant, int(num_prompts))
    with tempfile.TemporaryDirectory() as folder:
        config = load([*settings(given, Path(folder)), *overrides], world_size=1)
        with join_world(config) as world, open_run(config, world, time.monotonic()) as run:
            run.roles.refit(version=0)
            give_reward(run.roles)
            run.roles.timer.drain()
            turns.ready(**{name: version(name) for name in ("torch", "megatron-core", "transformers")})
            step = 0
            while turns.begin():
                step += 1
                if given.is_varied:
                    force_lengths(run.roles, given.lengths, step)
                ppo_step(step, run.next_prompts(), run.roles)
                seconds = {name.removeprefix("time/"): value for name, value in run.roles.timer.drain().items()}
                turns.end(
                    generation=seconds["rollout"],
                    passes=sum(seconds.get(phase, 0.0) for phase in PASSES),
                    updates=sum(seconds[phase] for phase in UPDATES),
                    refit=seconds["refit"],
                    reward=seconds["reward"],
                )


def settings(given: work.Work, folder: Path) -> list[str]:
    work.save_model(given.shape, folder / "model")
    rows = [
        {"id": str(i), "question": " ".join(f"t{id_}" for id_ in ids), "answer": "7"}
        for i, ids in enumerate(given.prompts)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model.path": folder / "model",
        "model.create": "null",
        "data.generate": "null",
        "data.train_path": folder / "train.jsonl",
        "data.eval_path": "null",
        "data.sft_path": "null",
        "data.shuffle": "false",
        "data.rollout_batch_size": len(given.prompts),
        "rollout.n_samples_per_prompt": work.SAMPLES_PER_PROMPT,
        "rollout.max_response_tokens": given.longest,
        "rollout.max_batch_size": len(given.lengths),
        "rollout.stop": "[]",
        "rollout.stop_token_ids": "[]",
        "rollout.consistency.policy": "off",  # an EOS put in place of a token has that token's log-probability
        "algo.old_logprobs": "engine",  # TRL takes them from generation too
        "algo.ratio_tolerance": "null",  # the same EOS
        "algo.kl_coef": work.KL_COEF,
        "sft.output": "null",
        "trainer.run_dir": folder / "run",
        "trainer.tensorboard": "false",
        "trainer.eval_every": 0,
        "trainer.eval_samples": 0,
    }
    for role in ("actor", "critic"):
        values |= {f"{role}.global_batch_size": work.UPDATE}
        values |= {f"{role}.optim.{rate}": work.LEARNING_RATE for rate in ("lr", "min_lr")}
        values |= {f"{role}.micro_batch_tokens": TOKENS, f"{role}.forward_micro_batch_tokens": TOKENS}
    return ["experiment=quickstart", *(f"{key}={value}" for key, value in values.items())]


def give_reward(roles: Roles) -> None:
    """Replace the grader's rewards by the work's own; a step still grades, so that its time counts."""
    grade = roles.grade

    def graded(prompts, completions):
        grades, _ = grade(prompts, completions)
        return grades, [work.reward(row.tolist()) for row in completions.held.token_ids]

    roles.grade = graded


class FixedLengths:
    """Replaces the engine's StopRule: each response ends with an EOS at a given length."""

    def __init__(self, lengths_R: np.ndarray):
        self.lengths_R = lengths_R

    def stopped(self, tokens_RT: np.ndarray, rows_B: np.ndarray, last: int) -> np.ndarray:
        ends_B = self.lengths_R[rows_B] == last + 1
        tokens_RT[rows_B[ends_B], last] = work.EOS
        return ends_B


def force_lengths(roles: Roles, lengths: Sequence[int], step: int) -> None:
    """Make response i of the step lengths[i] tokens long. The decoder knows a response by its first random draw."""
    n = roles.sampling.n
    seeds = [
        sample_seed(roles.config.trainer.seed, step, position, k)
        for position in range(len(lengths) // n)
        for k in range(n)
    ]
    length_of = dict(zip(uniforms(seeds, 1)[:, 0].tolist(), lengths, strict=True))

    def decode(model, prompts, prompt_of_R, uniforms_RT, params, stop_rule, vocab_limit, **bounds):
        fixed = FixedLengths(np.array([length_of[draw] for draw in uniforms_RT[:, 0].tolist()]))
        return decode_by_stop_rule(model, prompts, prompt_of_R, uniforms_RT, params, fixed, vocab_limit, **bounds)

    engine.decode = decode


decode_by_stop_rule = engine.decode

if __name__ == "__main__":
    main(*sys.argv[1:])
