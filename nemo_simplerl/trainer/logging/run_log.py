"""The log of a run: its files (metrics.jsonl, rollouts/, messages.jsonl and so on) and progress on the screen.

Rank 0 alone writes; elsewhere every method does nothing, so that the trainer calls them on every rank. What the disk
refuses is told, and the run goes on.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from rich.console import Console

from nemo_simplerl.config.schema import WandbConfig
from nemo_simplerl.eval.run import SpreadRows
from nemo_simplerl.files import Unessential, append_jsonl, atomic_file, atomic_write, jsonl_text, truncate_jsonl
from nemo_simplerl.parallel.reductions import gather_to_first
from nemo_simplerl.trainer.guard.faults import fault_point
from nemo_simplerl.trainer.logging.progress import Progress
from nemo_simplerl.trainer.logging.wandb_log import MAX_SAMPLES, WandbLog

log = logging.getLogger(__name__)

MESSAGES = "messages.jsonl"  # in the run directory
_BLOCK_ROWS = 128  # of the samples that are written together


class MessageLog:
    """Keeps a run's messages in messages.jsonl, whatever becomes of the screen."""

    def __init__(self, run_dir: Path):
        self._path = run_dir / MESSAGES
        self._is_mended = False

    def __call__(self, record: logging.LogRecord) -> None:
        """Append the message. Where that fails nothing is told: a message about it would not be kept either."""
        row = {"time": _local_time(record.created), "level": record.levelname, "text": record.getMessage()}
        with suppress(OSError):
            if not self._is_mended:  # here and not before: the first rank alone has messages to keep
                _cut_torn_line(self._path)
                self._is_mended = True
            append_jsonl(self._path, row)


class RunLog:
    """Writes the files of a run directory.

    resume_step: step of the checkpoint that the run continues from; what later steps wrote is dropped, since the run
    makes them again. With None the run starts over, and metrics, rollouts, evaluations and summary of an earlier run in
    the folder are dropped. `total_steps` is set once it is known.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        tensorboard: bool,
        resume_step: int | None,
        is_writer: bool,
        console: Console | None = None,
    ):
        self._is_writer = is_writer
        self.wandb: WandbLog | None = None  # while trainer.wandb is enabled, on the rank that writes
        self._total_steps: int | None = None
        self._unessential = Unessential()
        self._unwritten: list[dict[str, Any]] = []  # lines of metrics.jsonl that the disk has refused so far
        if not is_writer:
            return
        self._dir = Path(run_dir)
        self._dir.mkdir(parents=True, exist_ok=True)
        self._steps_done = resume_step or 0
        _drop_after(self._dir, resume_step)
        self._board = None
        with self._unessential.write("tensorboard", self._dir):
            if tensorboard:
                first_step = 0 if resume_step is None else resume_step + 1
                self._board = open_tensorboard(self._dir / "tensorboard", first_step)
        self._progress = Progress(console or Console())

    @property
    def total_steps(self) -> int | None:
        return self._total_steps

    @total_steps.setter
    def total_steps(self, count: int) -> None:
        self._total_steps = count
        if self._is_writer:
            self._progress.start(count, done=self._steps_done)

    def config(self, text: str) -> None:
        """Write the resolved configuration, given as YAML."""
        if self._is_writer:
            self._write("config.yaml", text)

    def open_wandb(self, settings: WandbConfig, config: Mapping[str, Any]) -> None:
        """Send metrics and samples from here on to Weights & Biases too, where the settings enable it."""
        if self._is_writer and settings.enabled:
            self.wandb = WandbLog(settings, self._dir, config)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a finished step's metrics (step 0: the evaluation before the first). Once a step, in their order.

        values: numbers or tensors of one element by `group/name`. NaN and infinity become null, with a warning.
        """
        if not self._is_writer:
            return
        numbers = {key: plain(value) for key, value in values.items()}
        if self.wandb is not None:
            numbers["log/wandb_failures"] = self.wandb.failures  # of this process, so far
        self._unwritten.append(_ordered(step, numbers))
        self._write_metrics()
        if self._board is not None:
            with self._unessential.write("tensorboard", self._dir):
                for key, value in numbers.items():
                    if value is not None:
                        self._board.add_scalar(key, value, step)
        if self.wandb is not None:
            self.wandb.metrics(step, numbers)
        self._progress.step(step, numbers)
        if missing := sorted(key for key, value in numbers.items() if value is None):
            log.warning(f"step {step}: not a finite number: {', '.join(missing)}")

    def rollouts(self, step: int, rows: SpreadRows, *, group: dist.ProcessGroup | None) -> None:
        """Write the samples of a step, one row a completion, which are spread over the ranks of `group`. Collective.

        The rows of all ranks pass through the writer's memory a block at a time.
        """
        stride, shown, number = max(-(-len(rows) // MAX_SAMPLES), 1), [], 0
        blocks = line_blocks(rows, group)
        if self._is_writer:
            path = self._dir / f"rollouts/step_{step:06d}.jsonl"
            with self._unessential.write("rollouts/", self._dir), atomic_file(path) as file:
                for lines in blocks:
                    file.write(b"".join(lines))
                    if self.wandb is not None:
                        shown += [json.loads(line) for line in lines[-number % stride :: stride]]
                        number += len(lines)
        for _ in blocks:  # all ranks send all, also where the disk refused some
            pass
        if self.wandb is not None:
            self.wandb.samples(step, shown)

    def eval(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the responses of the evaluation after `step` steps; its metrics belong in the step's line."""
        self._step_file("eval", step, rows)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json: the finished run in a few numbers."""
        if self._is_writer:
            text = json.dumps(plain(values), indent=2, allow_nan=False)
            self._write("summary.json", text + "\n")

    def close(self) -> None:
        """Close Weights & Biases, the progress line and TensorBoard."""
        if not self._is_writer:
            return
        if self._unwritten:
            self._write_metrics()
        if self.wandb is not None:
            self.wandb.close()
        self._progress.close()
        if self._board is not None:
            with self._unessential.write("tensorboard", self._dir):
                self._board.close()

    def _write_metrics(self) -> None:
        """Append the lines that are not on disk yet: a line that found no room is written before the next one."""
        with self._unessential.write("metrics.jsonl", self._dir):
            fault_point("log.metrics")
            append_jsonl(self._dir / "metrics.jsonl", *self._unwritten)
            self._unwritten.clear()

    def _step_file(self, folder: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._is_writer:
            self._write(f"{folder}/step_{step:06d}.jsonl", jsonl_text([plain(row) for row in rows]), kind=f"{folder}/")

    def _write(self, name: str, content: str, kind: str | None = None) -> None:
        with self._unessential.write(kind or name, self._dir):
            atomic_write(self._dir / name, content)


def line_blocks(rows: SpreadRows, group: dist.ProcessGroup | None) -> Iterator[list[bytes]]:
    """The rows as lines of a .jsonl file, in order, a block at a time; on the group's first rank, and elsewhere empty
    blocks. Collective: every rank takes all blocks."""
    rank = 0 if group is None else group.rank()
    held = iter(rows.held)
    for start in range(0, len(rows), _BLOCK_ROWS):
        holders = rows.holders[start : start + _BLOCK_ROWS]
        mine = [jsonl_text([plain(next(held))]).encode() for _ in range(int(np.sum(holders == rank)))]
        shares = [iter(lines) for lines in gather_to_first(mine, group, "rows")]
        yield [next(shares[holder]) for holder in holders.tolist()] if shares else []


def _ordered(step: int, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The step, the metrics by name, then timings and memory, which differ between a run and its rerun."""
    names = sorted(numbers, key=lambda name: (name.startswith(("time/", "memory/")), name))
    return {"step": step} | {name: numbers[name] for name in names}


def plain(value: Any) -> Any:
    """The value in JSON's types: a tensor of one element becomes its number, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line that a crash cut short, whatever the lines before it hold."""
    content = path.read_bytes() if path.is_file() else b""
    if not content.endswith(b"\n") and content:
        os.truncate(path, content.rfind(b"\n") + 1)


def _local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _drop_after(run_dir: Path, resume_step: int | None) -> None:
    """Drop what was written about steps after `resume_step`; with None, about all steps."""
    last = -1 if resume_step is None else resume_step
    for path in [*run_dir.glob("rollouts/step_*.jsonl"), *run_dir.glob("eval/step_*.jsonl")]:
        if (match := re.fullmatch(r"step_(\d+)", path.stem)) and int(match[1]) > last:
            path.unlink()
    (run_dir / "summary.json").unlink(missing_ok=True)  # written again at the end
    truncate_jsonl(run_dir / "metrics.jsonl", lambda row: row["step"] <= last)


def open_tensorboard(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer that starts at `first_step`: what an earlier one wrote from there on is no longer shown."""
    # Imported here: it takes a second, and not every run needs it.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)
