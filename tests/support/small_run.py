"""A run small enough for a test: the quickstart's experiment with a tinier model and a few problems."""

import json
import os
from pathlib import Path

import torch

from nemo_simplerl.config.load import load
from nemo_simplerl.data.generated import arithmetic
from nemo_simplerl.model.conversion.verify import different_tensors
from nemo_simplerl.model.formats.archive import list_files
from nemo_simplerl.model.formats.torch_dist import read_index
from nemo_simplerl.model.source import open_source
from nemo_simplerl.trainer.start import start_training

SMALL = [
    "experiment=quickstart",
    "model.create.hidden_size=32",
    "model.create.num_layers=2",
    "model.create.ffn_hidden_size=48",
    "model.create.vocab_size=512",
    "actor.global_batch_size=8",
    "actor.micro_batch_size=4",
    *(f"{role}.{name}micro_batch_tokens=null" for role in ("actor", "critic") for name in ("", "forward_")),
    "critic.global_batch_size=8",
    "critic.micro_batch_size=4",
    "data.rollout_batch_size=4",
    "data.eval_limit=6",
    "rollout.max_prompt_tokens=100",
    "rollout.max_response_tokens=12",
    "sft.output=null",
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.tensorboard=false",
]


def few_problems(folder: Path) -> list[str]:
    """Writes 20 problems, 8 held-out ones and 40 demonstrations; the overrides that point to them."""
    paths = {f"data.{name}_path": folder / f"{name}.jsonl" for name in ("train", "eval", "sft")}
    arithmetic.write_task(*paths.values(), seed=1, task=arithmetic.Task(num_train=20, num_eval=8, num_sft=40))
    return [f"{key}={path}" for key, path in paths.items()]


def train_here(overrides: list[str]) -> None:
    """`simplerl train` on this rank; give it to run_ranks."""
    start_training(load(overrides, world_size=int(os.environ["WORLD_SIZE"])))


def books(run_dir: Path) -> dict[str, object]:
    """What a run wrote that must not differ between reruns: metrics without timings, samples, evaluations."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {key: value for key, value in line.items() if not key.startswith(("time/", "memory/"))} for line in lines
    ]
    rows = {str(path.relative_to(run_dir)): path.read_bytes() for path in sorted(run_dir.glob("*/step_*.jsonl"))}
    return {"metrics": json.dumps(metrics), "rows": rows}


def assert_same_state(one: Path, other: Path) -> None:
    """Weights and optimizers of two finished runs of four steps are the same to the bit."""
    folders = [path / "checkpoints/step_000004" for path in (one, other)]
    for role in ("actor", "critic"):
        assert different_tensors(*(open_source(folder, critic=role == "critic") for folder in folders), None) == []
        states = [read_index(list_files(folder / role), "optimizer") for folder in folders]
        assert states[0].keys() == states[1].keys() and states[0]
        for key in states[0]:
            assert torch.equal(states[0][key].read(), states[1][key].read()), (role, key)


def leave_bad_updates(run_dir: Path, *names: str) -> None:
    """As rank 0 leaves them, without their content."""
    (run_dir / "bad_updates").mkdir(exist_ok=True)
    for name in names:
        (run_dir / f"bad_updates/{name}_rank0.pt").touch()
