"""Warm start and PPO from one command, on a task small enough for a test: each stage must teach something."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_simplerl.data.rows import write_rows
from support.small_run import SMALL

ROOT = Path(__file__).parents[2]
SIZES = [
    "model.create.hidden_size=64",
    "model.create.ffn_hidden_size=128",
    "sft.optim.lr=3e-3",
    "sft.epochs=10",
    "sft.micro_batch_size=32",
    "sft.eval_every=1000",  # more than there are updates: before the first, and after the last
    "data.rollout_batch_size=16",
    "actor.global_batch_size=32",
    "actor.micro_batch_size=32",
    "critic.global_batch_size=32",
    "critic.micro_batch_size=32",
    "actor.optim.lr=5e-4",
    "critic.optim.lr=2e-3",
    "trainer.max_steps=15",
    "trainer.eval_every=0",
    "data.eval_limit=null",
]


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_greedy_accuracy_on_problems_held_out_rises_in_the_warm_start_and_again_in_ppo(tmp_path):
    held_out, seen = range(10, 100, 4), [n for n in range(10, 100) if n % 4 != 2]
    for name, numbers in (("train", seen), ("eval", held_out)):
        write_rows(tmp_path / f"{name}.jsonl", [{"question": f"Say {n}.", "answer": str(n)} for n in numbers])
    # Most of the demonstrations forget the box, and imitation does too.
    rng = random.Random(0)
    answers = rng.choices(["\\boxed{{{}}}", "{}"], weights=[0.45, 0.55], k=16 * len(seen))
    demonstrations = [
        {"question": f"Say {n}.", "response": answer.format(n)} for n, answer in zip(seen * 16, answers, strict=True)
    ]
    write_rows(tmp_path / "sft.jsonl", demonstrations)
    run_dir = tmp_path / "run"
    places = [f"data.{name}_path={tmp_path}/{name}.jsonl" for name in ("train", "eval", "sft")]
    places += [f"trainer.run_dir={run_dir}", f"sft.output={run_dir}/sft"]
    command = [sys.executable, "-m", "nemo_simplerl", "train", *SMALL, *SIZES, *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    warm_start, ppo = _lines(run_dir / "warm_start.jsonl"), _lines(run_dir / "metrics.jsonl")
    before, after_sft, after_ppo = (
        line[name]
        for line, name in (
            (warm_start[0], "sft_eval/accuracy"),
            (warm_start[-1], "sft_eval/accuracy"),
            (ppo[-1], "eval/accuracy"),
        )
    )
    assert len(_lines(run_dir / "eval/step_000015.jsonl")) == 2 * len(held_out)
    assert before == 0.0 and before < after_sft < after_ppo - 0.2, (before, after_sft, after_ppo)
    assert after_sft == ppo[0]["eval/accuracy"], "PPO begins with what the warm start ended with"
    rewards = [line["reward/mean"] for line in ppo[1:]]
    assert rewards[0] < 0.3, "the warm start should not have solved it"
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.5, rewards
    assert ppo[-1]["eval/format_rate"] > 0.9
