"""A run directory's books: config.yaml, metrics.jsonl, rollouts/, eval/, summary.json, tensorboard/; the screen.

Rank 0 alone writes; elsewhere every method does nothing, so that the trainer calls them on every rank.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nemo_simplerl.trainer.files import append_jsonl, atomic_write, jsonl_text, read_jsonl, truncate_jsonl
from nemo_simplerl.trainer.progress import Progress, labelled

# Shown of an evaluation: (key, label, format).
_EVAL_SHOWN = (
    ("eval/accuracy", "accuracy", "{:.1%}"),
    ("eval/sampled_accuracy", "sampled", "{:.1%}"),
    ("eval/format_rate", "answered", "{:.1%}"),
    ("eval/length_mean", "length", "{:.0f}"),
)


class RunLog:
    """The books of one run.

    `resume_step` is the step of the checkpoint that the run continues from: what was written of later steps is
    dropped, since they will happen again. With None the run starts over: metrics, rollouts, evaluations and
    summary of an earlier run in the same folder are dropped.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        total_steps: int,
        tensorboard: bool,
        resume_step: int | None,
        is_writer: bool,
        console: Console | None = None,
    ):
        self._is_writer = is_writer
        if not is_writer:
            return
        self._dir = Path(run_dir)
        self._dir.mkdir(parents=True, exist_ok=True)
        rows = _drop_after(self._dir, resume_step)
        self._last_step = rows[-1]["step"] if rows else -1
        first_step = resume_step or 0
        self._board = _open_tensorboard(self._dir, resume_step) if tensorboard else None
        self._progress = Progress(console or Console(), total_steps=total_steps, first_step=first_step)

    def config(self, text: str) -> None:
        """The resolved configuration, as YAML."""
        if self._is_writer:
            atomic_write(self._dir / "config.yaml", text)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """A finished step's metrics, by `group/name`: numbers or tensors of one element."""
        if not self._is_writer:
            return
        numbers = self._record(step, values)
        self._progress.step(step, numbers)

    def rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What was sampled in a step, one row a completion."""
        if self._is_writer:
            atomic_write(_step_file(self._dir / "rollouts", step), jsonl_text([_plain(row) for row in rows]))

    def eval(self, step: int, rows: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> None:
        """An evaluation after `step` steps (0: before the first): its rows, one a response, and its metrics,
        which join the step's line in metrics.jsonl whichever of the two comes first."""
        if not self._is_writer:
            return
        atomic_write(_step_file(self._dir / "eval", step), jsonl_text([_plain(row) for row in rows]))
        numbers = self._record(step, values)
        parts = [
            f"{label} {form.format(v)}"
            for key, label, form in _EVAL_SHOWN
            if (v := numbers.get(key)) is not None
        ]
        self.say(f"eval after step {step}:  {'  '.join(parts)}")
        self._progress.restart_clock()

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run in a few numbers, at its end."""
        if self._is_writer:
            atomic_write(
                self._dir / "summary.json", json.dumps(_plain(values), indent=2, allow_nan=False) + "\n"
            )

    def say(self, text: str) -> None:
        """A line to the person who watches."""
        if self._is_writer:
            self._progress.say(text)

    def close(self) -> None:
        if not self._is_writer:
            return
        self._progress.close()
        if self._board is not None:
            self._board.close()

    def _record(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write `values` into the line of `step`, the last line or a new one. Answers them as plain numbers."""
        if step < self._last_step:
            raise ValueError(f"metrics of step {step} come after those of step {self._last_step}")
        numbers = {key: _plain(value) for key, value in values.items()}
        if missing := sorted(key for key, value in numbers.items() if value is None):
            self.say(f"step {step}: not a finite number: {', '.join(missing)}")
        path = self._dir / "metrics.jsonl"
        if step == self._last_step:
            *earlier, last = read_jsonl(path)
            atomic_write(path, jsonl_text([*earlier, _ordered(last | numbers)]))
        else:
            append_jsonl(path, _ordered({"step": step} | numbers))
            self._last_step = step
        if self._board is not None:
            for key, value in numbers.items():
                if value is not None:
                    self._board.add_scalar(key, value, step)
        return numbers


def _ordered(row: dict[str, Any]) -> dict[str, Any]:
    """The step, then the metrics by name, then the timings, which differ from one run to its rerun."""
    names = sorted(row.keys() - {"step"}, key=lambda name: (name.startswith("time/"), name))
    return {name: row[name] for name in ["step", *names]}


def _plain(value: Any) -> Any:
    """JSON's own types: a tensor of one element becomes its number, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.jsonl"


def _drop_after(run_dir: Path, resume_step: int | None) -> list[dict[str, Any]]:
    """Forget what was written of steps after `resume_step`, or everything. Answers the metrics that stay."""
    last = -1 if resume_step is None else resume_step
    for path in [*run_dir.glob("rollouts/step_*.jsonl"), *run_dir.glob("eval/step_*.jsonl")]:
        if (match := re.fullmatch(r"step_(\d+)", path.stem)) and int(match[1]) > last:
            path.unlink()
    if resume_step is None:
        (run_dir / "summary.json").unlink(missing_ok=True)
    return truncate_jsonl(run_dir / "metrics.jsonl", lambda row: row["step"] <= last)


def _open_tensorboard(run_dir: Path, resume_step: int | None) -> Any:
    # Imported here: it takes a second, and a run may do without.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(
        str(run_dir / "tensorboard"), purge_step=0 if resume_step is None else resume_step + 1
    )
