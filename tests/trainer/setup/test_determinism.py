"""trainer.deterministic: what it sets, and that it changes nothing where nothing has to be pinned."""

import os

import pytest
import torch

from nemo_simplerl.model.network.provider import transformer_config
from nemo_simplerl.trainer.setup import determinism
from support.ranks import run_ranks
from support.small_run import SMALL, books, train_here
from support.tiny import layout

HF = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture
def bare(monkeypatch):
    """An environment without the variables, put back afterwards."""
    for name in determinism.VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_it_sets_what_the_libraries_read_and_keeps_what_is_set(bare, monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    determinism.pin(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ and determinism.notes(False) == []
    determinism.pin(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] == "0"
    (note,) = determinism.notes(True)
    assert "NCCL_ALGO=Tree" in note and "Out of reach" in note


@pytest.mark.parametrize(("asked", "on_gpu"), [(True, True), (True, False), (False, True)])
def test_megatron_is_told_on_gpus_alone(asked, on_gpu):
    config = transformer_config(HF, layout(), dtype=torch.float32, on_gpu=on_gpu, deterministic=asked)
    assert config.deterministic_mode == (asked and on_gpu)


def _train(overrides: list[str]) -> dict[str, str | None]:
    train_here(overrides)
    return {name: os.environ.get(name) for name in determinism.VARIABLES}


@pytest.mark.slow
def test_on_a_cpu_it_changes_nothing(tmp_path, data):
    environments = {}
    for word in ("false", "true"):
        overrides = [*SMALL, *data, f"trainer.run_dir={tmp_path / word}", "trainer.max_steps=2"]
        (environments[word],) = run_ranks(_train, 1, [*overrides, f"trainer.deterministic={word}"])
    assert books(tmp_path / "true") == books(tmp_path / "false")
    assert environments["true"] == determinism.VARIABLES
