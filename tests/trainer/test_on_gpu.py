"""What only a GPU can show: the same model and steps in CUDA, with Transformer Engine where it is installed."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.pipeline import TokenBatch
from nemo_simplerl.parallel.mesh import destroy_mesh, leave_together
from nemo_simplerl.trainer.setup.world import mesh_of
from support.ranks import run_ranks
from support.small_run import SMALL, train_here
from support.tiny import learner_of, save_hf_model, small_config

pytestmark = pytest.mark.gpu
HAS_TRANSFORMER_ENGINE = importlib.util.find_spec("transformer_engine") is not None


# Long enough for two samples or three.
PACKED = [f"{role}.{name}micro_batch_tokens=256" for role in ("actor", "critic") for name in ("", "forward_")]


@pytest.mark.parametrize("rows", [[], PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize(
    ("precision", "transformer_engine"), [("fp32", "false"), ("fp32", "null"), ("bf16", "false"), ("bf16", "true")]
)
def test_a_run_on_one_gpu_agrees_with_its_engine(tmp_path, data, precision, transformer_engine, rows):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if transformer_engine == "true" and not HAS_TRANSFORMER_ENGINE:
        pytest.skip("Transformer Engine is not installed")
    overrides = [f"model.precision={precision}", f"model.transformer_engine={transformer_engine}", *rows]
    overrides += ["algo.ratio_tolerance=null", f"trainer.run_dir={tmp_path}"]
    run_ranks(train_here, 1, [*SMALL, *data, *overrides])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][1:]
    assert len(lines) == 4
    tolerance = {"fp32": 1e-3, "bf16": 5e-2}[precision]
    for line in lines:
        assert line["actor/first_ratio_deviation"] < tolerance
        assert line["consistency/logprob_diff_mean"] < tolerance


def _allocated(folder: str) -> dict[str, int]:
    """Bytes of tensors on the GPU within and after an update of a bfloat16 actor that offloads, and its parameters."""
    config = small_config(folder, {}, {})
    config = replace(config, model=replace(config.model, precision="bf16", transformer_engine=False))
    mesh = mesh_of(config.actor, config.trainer.distributed_timeout_s)
    learner = learner_of(config, folder, config.actor.optim, mesh, total_updates=4, offload_adam_states=True)

    def loss(hidden_SBH, micro):
        return head.output(learner.gpt, hidden_SBH).float().pow(2).mean(), {}

    with learner.optimizer_on_device():
        learner.update([TokenBatch(torch.arange(24, device=mesh.device).view(2, 12))], loss)
        within = torch.cuda.memory_allocated()
    found = {"within": within, "after": torch.cuda.memory_allocated()}
    found["parameters"] = sum(param.numel() for param in learner.gpt.parameters())
    leave_together()
    destroy_mesh()
    return found


def test_offloaded_state_leaves_the_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    (found,) = run_ranks(_allocated, 1, str(save_hf_model(tmp_path / "model")))
    # Gradients 4 bytes a parameter, masters 4, moments 8.
    assert found["within"] - found["after"] >= 16 * found["parameters"]
