"""Warm start and PPO together on a task small enough for a test: the reward must rise."""

import json

import pytest

from nemo_simplerl.data.rows import write_rows
from ranks import run_ranks
from small_run import SMALL, train_here


@pytest.mark.slow
def test_ppo_learns_to_box_what_imitation_boxes_half_the_time(tmp_path):
    numbers = range(10, 60)
    questions = [{"question": f"Say {n}.", "answer": str(n)} for n in numbers]
    for name in ("train", "eval"):
        write_rows(tmp_path / f"{name}.jsonl", questions)
    answers = ["\\boxed{{{}}}", "{}"]
    demonstrations = [
        {"question": f"Say {n}.", "response": answers[(n + k) % 2].format(n)} for k in range(24) for n in numbers
    ]
    write_rows(tmp_path / "sft.jsonl", demonstrations)
    overrides = [
        *SMALL,
        *(f"data.{name}_path={tmp_path}/{name}.jsonl" for name in ("train", "eval", "sft")),
        f"trainer.run_dir={tmp_path}/run",
        f"sft.output={tmp_path}/sft",
        "model.create.hidden_size=64",
        "model.create.ffn_hidden_size=128",
        "sft.optim.lr=3e-3",
        "sft.epochs=10",
        "sft.micro_batch_size=32",
        "data.rollout_batch_size=16",
        "actor.global_batch_size=32",
        "actor.micro_batch_size=32",
        "critic.global_batch_size=32",
        "critic.micro_batch_size=32",
        "actor.optim.lr=5e-4",
        "critic.optim.lr=2e-3",
        "trainer.max_steps=15",
        "trainer.eval_every=0",
        "data.eval_limit=100",
    ]
    run_ranks(train_here, 1, overrides)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward/mean"] for line in lines[1:]]
    assert rewards[0] < 0.3, "the warm start should not have solved it"
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.5, rewards
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["format_rate_after"] > 0.9
    assert summary["sampled_accuracy_after"] > summary["sampled_accuracy_before"] + 0.2
