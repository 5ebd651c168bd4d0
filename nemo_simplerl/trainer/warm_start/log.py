"""The log of a warm start: warm_start.jsonl, TensorBoard's warm_start, Weights & Biases, messages."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_simplerl.config.schema import TrainerConfig
from nemo_simplerl.files import Unessential, append_jsonl, truncate_jsonl
from nemo_simplerl.trainer.logging.run_log import open_tensorboard, plain
from nemo_simplerl.trainer.logging.wandb_log import WandbLog

log = logging.getLogger(__name__)

FILE = "warm_start.jsonl"
_EVALUATION_NUMBERS = {
    "sft_eval/loss": "held-out loss {:.4f}",
    "sft_eval/accuracy": "accuracy {:.1%}",
    "sft_eval/format_rate": "answered {:.1%}",
}


class WarmStartLog:
    """Writes one line an update, continuing after `done` updates of `total`. Only rank 0 writes."""

    def __init__(self, trainer: TrainerConfig, done: int, total: int, is_writer: bool, wandb: WandbLog | None):
        self._is_writer, self._wandb, self._total = is_writer, wandb, total
        self._started = self._lap = time.monotonic()
        self._unessential = Unessential()
        self._unwritten: list[dict[str, Any]] = []
        if is_writer:
            self._file = Path(trainer.run_dir) / FILE
            truncate_jsonl(self._file, lambda row: done > 0 and row["update"] <= done)
            folder = Path(trainer.run_dir) / "tensorboard" / "warm_start"
            self._board = open_tensorboard(folder, done + 1 if done else 0) if trainer.tensorboard else None

    def update(self, update: int, metrics: Mapping[str, Any]) -> None:
        """Write metrics, by group/name, after an update; update 0 is the evaluation before the first."""
        now = time.monotonic()
        numbers = {name: plain(value) for name, value in sorted(metrics.items())} | {"sft_time/total": now - self._lap}
        self._lap = now
        if self._is_writer:
            self._unwritten.append({"update": update, **numbers})
            with self._unessential.write(FILE, self._file.parent):
                append_jsonl(self._file, *self._unwritten)
                self._unwritten.clear()
            with self._unessential.write("tensorboard", self._file.parent):
                for name, value in numbers.items():
                    if self._board is not None and value is not None:
                        self._board.add_scalar(name, value, update)
            if self._wandb is not None:
                self._wandb.metrics(update, numbers)
        if update and ((update - 1) % max(self._total // 10, 1) == 0 or update == self._total):
            loss = numbers.get("sft/loss")  # none where the update was left out
            log.info(
                f"warm start: update {update}/{self._total}  loss {math.nan if loss is None else loss:.4f}  "
                f"lr {numbers['sft/lr']:.2e}  {now - self._started:.0f} s"
            )
        found = [
            text.format(numbers[name]) for name, text in _EVALUATION_NUMBERS.items() if numbers.get(name) is not None
        ]
        if found:
            log.info(f"warm start: evaluation after update {update}: {', '.join(found)}")

    def close(self) -> None:
        """Close TensorBoard."""
        if self._is_writer and self._board is not None:
            with self._unessential.write("tensorboard", self._file.parent):
                self._board.close()
