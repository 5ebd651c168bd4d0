"""The whole PPO loop with rollout.engine=trtllm, on the double in real Ray processes."""

import json
import os
from pathlib import Path

import psutil
import pytest

from fakes.double import install_double
from fakes.releases import build
from fakes.small_engine import NothingStays, is_alive
from nemo_simplerl.config.load import load
from nemo_simplerl.data.rows import write_rows
from nemo_simplerl.trainer.start import start_warm_start
from support.ranks import run_ranks
from support.small_run import SMALL, train_here


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> list[str]:
    """Overrides that point to a task and to a warm start that solves about half of it: rewards differ."""
    folder = tmp_path_factory.mktemp("task")
    numbers = range(10, 60)
    for name in ("train", "eval"):
        write_rows(folder / f"{name}.jsonl", [{"question": f"Say {n}.", "answer": str(n)} for n in numbers])
    forms = ["\\boxed{{{}}}", "{}"]
    demonstrations = [
        {"question": f"Say {n}.", "response": forms[(n + k) % 2].format(n)} for k in range(24) for n in numbers
    ]
    write_rows(folder / "sft.jsonl", demonstrations)
    overrides = [
        *SMALL,
        *(f"data.{name}_path={folder}/{name}.jsonl" for name in ("train", "eval", "sft")),
        f"model.path={folder}/base",
        f"sft.output={folder}/sft",
        "model.create.hidden_size=64",
        "model.create.ffn_hidden_size=128",
        "sft.optim.lr=3e-3",
        "sft.epochs=10",
        "sft.micro_batch_size=32",
        "trainer.max_steps=10",
        "trainer.eval_every=5",
        "trainer.save_every=0",
    ]
    run_ranks(warm_up, 1, [*overrides, f"trainer.run_dir={folder}/run"])
    return overrides


def warm_up(overrides: list[str]) -> None:
    start_warm_start(load(overrides, world_size=1))


def train_on_the_double(overrides: list[str], folder: Path) -> list[str]:
    """`simplerl train` on this rank, with the draws of the hf engine. Answers what its engine left running.

    folder: that holds the package.
    """
    install_double("hf_engine", folder)
    with NothingStays():
        train_here(overrides)
    return [process.name() for process in psutil.Process().children(recursive=True) if is_alive(process)]


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def responses_of(run_dir: Path) -> dict[str, bytes]:
    return {os.path.relpath(path, run_dir): path.read_bytes() for path in sorted(run_dir.glob("*/step_*.jsonl"))}


DISCARDS = "rollout.trtllm.engine_args={sleep_config: {restore_modes: {model_weights: NONE}}}"


@pytest.mark.parametrize(
    ("world_size", "layout", "release", "engine"),
    [
        pytest.param(
            *(1, ["algo.critic_warmup_steps=1"], "1.3", [DISCARDS]),
            id="one engine that discards its weights asleep",
            marks=pytest.mark.long,
        ),
        pytest.param(
            *(2, ["actor.tensor_model_parallel_size=2"], "1.2", []),
            id="TP2 training with two engines",
            marks=pytest.mark.long,
        ),
    ],
)
def test_ten_steps_are_those_of_the_hf_engine(tmp_path, task, world_size, layout, release, engine):
    overrides = [*task, *layout, "rollout.verify_refit=every"]
    run_ranks(train_here, world_size, [*overrides, f"trainer.run_dir={tmp_path}/hf"])
    on_trtllm = [*overrides, f"trainer.run_dir={tmp_path}/trtllm", "rollout.engine=trtllm", *engine]
    left = run_ranks(train_on_the_double, world_size, on_trtllm, build(release, tmp_path / "double").parent)
    assert {name for names in left for name in names} <= {"torch_shm_manager"}
    assert responses_of(tmp_path / "trtllm") == responses_of(tmp_path / "hf") != {}
    expected, found = lines_of(tmp_path / "hf"), lines_of(tmp_path / "trtllm")
    assert [line["step"] for line in found] == list(range(11))
    assert len({line["reward/mean"] for line in expected[1:]}) > 5, "rewards were to differ from step to step"
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key.startswith("consistency/"):
                assert other[key] == pytest.approx(value, abs=1e-4), key
            elif not key.startswith(("time/", "memory/")):
                assert other[key] == value, key
    assert max(line["consistency/logprob_diff_max"] for line in found[1:]) < 1e-3
    assert {line["refit/verified"] for line in found if "refit/verified" in line} == {1.0}
