"""The whole PPO loop with rollout.engine=vllm and the real vLLM, left alone and killed."""

import json
from pathlib import Path

import pytest

from support.forked_runs import different, problems_in, start
from support.vllm_engine import python_with_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TEN_STEPS = [
    "rollout.engine=vllm",
    "rollout.vllm.cpu_kv_cache_mb=64",
    "rollout.vllm.start_timeout_s=400",
    "model.create.hidden_size=64",
    "model.create.num_attention_heads=2",  # heads of size 32, the least that vLLM computes on a CPU
    "model.create.num_query_groups=2",
    "trainer.max_steps=10",
    "trainer.save_every=5",
    "trainer.eval_every=5",
]


def rows_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_ten_steps_agree_with_the_trainer_and_a_killed_run_ends_as_one_left_alone(tmp_path):
    overrides = [*problems_in(tmp_path), *TEN_STEPS, f"rollout.vllm.python={python_with_vllm()}"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert start(alone, overrides, 1) == [0], (alone / "output.txt").read_text()
    rows = rows_of(alone)
    assert [row["step"] for row in rows] == list(range(11))
    assert max(row["consistency/logprob_diff_max"] for row in rows[1:]) < 1e-4
    assert {row["refit/verified"] for row in rows[1:]} == {1.0}
    assert start(killed, overrides, 1, "kill@actor.update#8") == [-9]
    assert start(killed, overrides, 1) == [0], (killed / "output.txt").read_text()
    assert different(alone, killed) == []
