"""What only a GPU can show: the same model and steps in CUDA, with Transformer Engine where it is installed."""

import importlib.util
import json

import pytest
import torch

from ranks import run_ranks
from small_run import SMALL, train_here

pytestmark = pytest.mark.gpu
HAS_TRANSFORMER_ENGINE = importlib.util.find_spec("transformer_engine") is not None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("transformer_engine", ["false", "true"])
def test_a_run_on_one_gpu_agrees_with_its_engine(tmp_path, data, precision, transformer_engine):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if transformer_engine == "true" and not HAS_TRANSFORMER_ENGINE:
        pytest.skip("Transformer Engine is not installed")
    overrides = [f"model.precision={precision}", f"model.transformer_engine={transformer_engine}"]
    overrides += ["algo.ratio_tolerance=null", f"trainer.run_dir={tmp_path}"]
    run_ranks(train_here, 1, [*SMALL, *data, *overrides])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][1:]
    assert len(lines) == 4
    tolerance = {"fp32": 1e-3, "bf16": 5e-2}[precision]
    for line in lines:
        assert line["policy/first_ratio_deviation"] < tolerance
        assert line["consistency/logprob_diff_mean"] < tolerance
