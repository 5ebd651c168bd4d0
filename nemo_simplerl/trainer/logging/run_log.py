"""The books of a run: config.yaml, metrics.jsonl, rollouts/, eval/, summary.json, tensorboard/, the screen.

Rank 0 alone writes; elsewhere every method does nothing, so that the trainer calls them on every rank.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_simplerl.config.schema import WandbConfig
from nemo_simplerl.files import append_jsonl, atomic_write, jsonl_text, truncate_jsonl
from nemo_simplerl.trainer.guard.faults import fault_point
from nemo_simplerl.trainer.guard.stop import STOPPED_FILE
from nemo_simplerl.trainer.logging.progress import Progress
from nemo_simplerl.trainer.logging.wandb_log import WandbLog

log = logging.getLogger(__name__)


class RunLog:
    """The books of one run.

    `resume_step` is the step of the checkpoint that the run continues from: what later steps wrote is
    dropped, since they will happen again. With None the run starts over: metrics, rollouts, evaluations and
    summary of an earlier run in the folder are dropped. `total_steps` is set once it is known.
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
        if not is_writer:
            return
        self._dir = Path(run_dir)
        self._dir.mkdir(parents=True, exist_ok=True)
        self._steps_done = resume_step or 0
        _drop_after(self._dir, resume_step)
        self._board = (
            open_tensorboard(self._dir / "tensorboard", 0 if resume_step is None else resume_step + 1)
            if tensorboard
            else None
        )
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
        """The resolved configuration, as YAML."""
        if self._is_writer:
            atomic_write(self._dir / "config.yaml", text)

    def open_wandb(self, settings: WandbConfig, config: Mapping[str, Any]) -> None:
        """From here on metrics and samples go to Weights & Biases too, where the settings say so."""
        if self._is_writer and settings.enabled:
            self.wandb = WandbLog(settings, self._dir, config)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """A finished step's metrics (step 0: the evaluation before the first). Once a step, in their order.

        By `group/name`: numbers or tensors of one element. NaN and infinity become null, and are told.
        """
        if not self._is_writer:
            return
        numbers = {key: plain(value) for key, value in values.items()}
        if self.wandb is not None:
            numbers["log/wandb_failures"] = self.wandb.failures  # of this process, so far
        fault_point("log.metrics")
        append_jsonl(self._dir / "metrics.jsonl", _ordered(step, numbers))
        if self._board is not None:
            for key, value in numbers.items():
                if value is not None:
                    self._board.add_scalar(key, value, step)
        if self.wandb is not None:
            self.wandb.metrics(step, numbers)
        self._progress.step(step, numbers)
        if missing := sorted(key for key, value in numbers.items() if value is None):
            log.warning(f"step {step}: not a finite number: {', '.join(missing)}")

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What was sampled in a step, one row a completion."""
        self._step_file("rollouts", step, rows)
        if self.wandb is not None:
            self.wandb.samples(step, rows)

    def eval(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The responses of the evaluation after `step` steps; its metrics belong in the step's line."""
        self._step_file("eval", step, rows)

    def stopped(self, facts: Mapping[str, Any]) -> None:
        """Where the run was stopped and why, for who starts it again."""
        if self._is_writer:
            atomic_write(self._dir / STOPPED_FILE, json.dumps(facts) + "\n")

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run in a few numbers, at its end."""
        if self._is_writer:
            text = json.dumps(plain(values), indent=2, allow_nan=False)
            atomic_write(self._dir / "summary.json", text + "\n")

    def close(self) -> None:
        if not self._is_writer:
            return
        if self.wandb is not None:
            self.wandb.close()
        self._progress.close()
        if self._board is not None:
            self._board.close()

    def _step_file(self, folder: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._is_writer:
            path = self._dir / folder / f"step_{step:06d}.jsonl"
            atomic_write(path, jsonl_text([plain(row) for row in rows]))


def _ordered(step: int, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The step, then the metrics by name, then timings and memory, which differ from one run to its rerun."""
    names = sorted(numbers, key=lambda name: (name.startswith(("time/", "memory/")), name))
    return {"step": step} | {name: numbers[name] for name in names}


def plain(value: Any) -> Any:
    """JSON's own types: a tensor of one element becomes its number, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_after(run_dir: Path, resume_step: int | None) -> None:
    """Forget what was written of steps after `resume_step`; with None, everything."""
    last = -1 if resume_step is None else resume_step
    for path in [*run_dir.glob("rollouts/step_*.jsonl"), *run_dir.glob("eval/step_*.jsonl")]:
        if (match := re.fullmatch(r"step_(\d+)", path.stem)) and int(match[1]) > last:
            path.unlink()
    (run_dir / "summary.json").unlink(missing_ok=True)  # written again at the end
    truncate_jsonl(run_dir / "metrics.jsonl", lambda row: row["step"] <= last)


def open_tensorboard(folder: Path, first_step: int) -> Any:
    """A writer that goes on at `first_step`: what an earlier one wrote from there on is no longer shown."""
    # Imported here: it takes a second, and a run may do without.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)
