"""The recipe's prompts through tensor and pipeline parallelism."""

import json
import os
from pathlib import Path

import pytest

from support.ranks import run_ranks
from support.small_run import train_here

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SIMPLERL_DATA_DIR", ROOT.parent / "shared" / "data"))
PROBLEMS = DATA / "math_level3to5_data_processed_with_qwen_prompt.json"


@pytest.mark.slow
@pytest.mark.skipif(not PROBLEMS.is_file(), reason=f"no {PROBLEMS.name}; set SIMPLERL_DATA_DIR to its folder")
def test_three_steps_on_real_problems_at_tp2_pp2(tmp_path):
    rows = json.loads(PROBLEMS.read_text())
    few = tmp_path / "few.json"  # every twentieth: each of four ranks reads all golds
    few.write_text(json.dumps([row for i, row in enumerate(rows) if i % 20 == 0 or not row["gt_answer"].strip()]))
    run_ranks(train_here, 4, ["experiment=math_smoke", f"data.train_path={few}", f"trainer.run_dir={tmp_path}"])
    assert "2 rows left out that have no gold answer" in (tmp_path / "messages.jsonl").read_text()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["step"]] == [1, 2, 3]
    for line in lines[1:]:
        assert line["actor/first_ratio_deviation"] < 1e-5
        assert line["consistency/logprob_diff_max"] < 1e-4
    samples = [json.loads(line) for line in (tmp_path / "rollouts/step_000003.jsonl").read_text().splitlines()]
    assert len(samples) == 16
    assert all(row["prompt"].startswith("<|im_start|>system\nPlease reason step by step") for row in samples)
    assert all(row["prompt"].endswith("<|im_start|>assistant\n") for row in samples)
