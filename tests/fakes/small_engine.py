"""A TrtllmEngine of the double, for a model that takes prompts longer than TensorRT-LLM's default limit."""

import json
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.rollout.refit import bucketed
from nemo_simplerl.rollout.trtllm.engine import TrtllmEngine
from support.tiny import save_hf_model

VOCAB, MAX_MODEL_LEN = 300, 1200


def save_model(folder: Path) -> Path:
    save_hf_model(folder, vocab_size=VOCAB)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


def start_engine(folder: Path, tokenizer=None, group=None, limits=None, vocab_limit=None, **settings) -> TrtllmEngine:
    return TrtllmEngine(
        folder,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_model_len=MAX_MODEL_LEN,
        settings=replace(compose(["experiment=quickstart"]).rollout.trtllm, **settings),
        group=group,
        limits=limits,
        vocab_limit=vocab_limit,
    )


def buckets_of(weights: dict, max_bytes: int = 100_000):
    return bucketed(weights.items(), max_bytes)


class NothingStays:
    """A context that fails where a process started inside outlives it.

    torch's helper for shared memory may stay, and so may what has ended and is not yet reaped: Ray 2.54 leaves one.
    """

    def __enter__(self) -> "NothingStays":
        self._before = set(psutil.Process().children(recursive=True))
        return self

    def started(self) -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True)) - self._before

    def __exit__(self, *error) -> None:
        deadline = time.monotonic() + 20
        while left := [p.name() for p in self.started() if is_alive(p) and p.name() != "torch_shm_manager"]:
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
