"""The recipe's prompts through tensor and pipeline parallelism, started as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SIMPLERL_DATA_DIR", ROOT.parent / "shared" / "data"))
PROBLEMS = DATA / "math_level3to5_data_processed_with_qwen_prompt.json"


@pytest.mark.long
@pytest.mark.skipif(not PROBLEMS.is_file(), reason=f"no {PROBLEMS.name}; set SIMPLERL_DATA_DIR to its folder")
def test_three_steps_on_real_problems_at_tp2_pp2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4", "-m", "nemo_simplerl"]
        + ["train", "experiment=math_smoke", f"trainer.run_dir={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "SIMPLERL_DATA_DIR": str(DATA), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rows left out that have no gold answer" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["step"]] == [1, 2, 3]
    for line in lines[1:]:
        assert line["actor/first_ratio_deviation"] < 1e-5
        assert line["consistency/logprob_diff_max"] < 1e-4
    samples = [json.loads(line) for line in (tmp_path / "rollouts/step_000003.jsonl").read_text().splitlines()]
    assert len(samples) == 16
    assert all(row["prompt"].startswith("<|im_start|>system\nPlease reason step by step") for row in samples)
    assert all(row["prompt"].endswith("<|im_start|>assistant\n") for row in samples)
