"""Evaluation during a warm start."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_simplerl.config.load import load
from nemo_simplerl.data.rows import read_rows, write_rows
from nemo_simplerl.data.sft import load_sft
from nemo_simplerl.data.tokenizer import load_tokenizer
from nemo_simplerl.trainer.start import start_warm_start
from support.ranks import run_ranks
from support.small_run import SMALL, few_problems


def _sft_here(overrides: list[str]) -> None:
    start_warm_start(load(overrides, world_size=int(os.environ["WORLD_SIZE"])))


def _overrides(folder: Path, run_dir: Path, num_held_out: int) -> list[str]:
    """A warm start of 9 updates on 36 of the 40 demonstrations; those that are held out are the last ones."""
    data = few_problems(folder)
    rows = read_rows(folder / "sft.jsonl")
    write_rows(folder / "trained.jsonl", rows[:36])
    write_rows(folder / "held_out.jsonl", rows[-num_held_out:])
    sizes = ["sft.global_batch_size=4", "sft.micro_batch_size=2", "sft.epochs=1", "sft.optim.lr=1e-2"]
    places = [f"trainer.run_dir={run_dir}", f"sft.output={run_dir}/sft", f"data.sft_path={folder}/trained.jsonl"]
    return [*SMALL, *data, *sizes, *places, f"data.sft_eval_path={folder}/held_out.jsonl", "sft.eval_every=4"]


def _lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "warm_start.jsonl").read_text().splitlines()]


def _loss(run_dir: Path, model: Path, file: Path) -> float:
    """The held-out loss as transformers computes it, one demonstration at a time."""
    tokenizer = load_tokenizer(run_dir / "model")
    examples, _ = load_sft(file, tokenizer, "none", trailing_newline=True, max_tokens=160, overlong="error")
    gpt = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    losses = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
        with torch.no_grad():
            logprobs = gpt(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        losses += (-logprobs[len(example.prompt_ids) - 1 :]).tolist()
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("world_size", "num_held_out", "changes"),
    [
        (1, 3, []),
        (2, 3, ["sft.micro_batch_tokens=128"]),
        (2, 1, []),  # one data rank has none
        (2, 3, ["actor.pipeline_model_parallel_size=2"]),
    ],
    ids=["alone", "packed", "a rank without", "PP2"],
)
def test_the_held_out_loss_is_that_of_the_models_before_and_after(tmp_path, world_size, num_held_out, changes):
    run_dir, held_out = tmp_path / "run", tmp_path / "held_out.jsonl"
    run_ranks(_sft_here, world_size, [*_overrides(tmp_path, run_dir, num_held_out), *changes])
    lines = _lines(run_dir)
    assert [line["update"] for line in lines] == list(range(10))
    losses = {line["update"]: line["sft_eval/loss"] for line in lines if "sft_eval/loss" in line}
    assert list(losses) == [0, 4, 8, 9]
    assert losses[0] == pytest.approx(_loss(run_dir, run_dir / "base", held_out), abs=1e-4)
    assert losses[9] == pytest.approx(_loss(run_dir, run_dir / "sft", held_out), abs=1e-4)
    assert losses[9] < losses[0] - 1
    assert all({"sft/loss", "sft/lr", "sft/grad_norm", "sft/skipped"} <= line.keys() for line in lines[1:])


def test_evaluations_change_no_weights_and_stand_in_tensorboard_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "run"
    overrides = _overrides(tmp_path, run_dir, 3)
    run_ranks(_sft_here, 1, [*overrides, "trainer.tensorboard=true"])
    lines = _lines(run_dir)
    events = EventAccumulator(str(run_dir / "tensorboard/warm_start"))
    events.Reload()
    for name in ("sft/loss", "sft_eval/loss", "sft_eval/accuracy"):
        points = [(point.step, pytest.approx(point.value, rel=1e-6)) for point in events.Scalars(name)]
        assert points == [(line["update"], line[name]) for line in lines if name in line]

    run_ranks(_sft_here, 1, [*overrides, f"sft.output={tmp_path}/plain", "sft.eval_every=0"])
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run_dir / "sft", tmp_path / "plain")]
    assert weights[0] == weights[1]
