"""What a person sees of a run while it goes on: one moving line on a terminal, one line a step in a log."""

import time
from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

# Shown of a step's metrics: (key, label, format).
_SHOWN = (
    ("reward/mean", "reward", "{:+.2f}"),
    ("reward/correct_share", "accuracy", "{:.0%}"),
    ("rollout/length_mean", "length", "{:.0f}"),
)
_STEPS_IN_ETA = 20  # lengths of responses drift, so old steps say little of the coming ones


class Progress:
    """Counts steps up to `total_steps`. A step's clock runs from the end of the one before or `restart_clock`."""

    def __init__(self, console: Console, *, total_steps: int, first_step: int):
        self._console, self._total_steps = console, total_steps
        self._seconds: deque[float] = deque(maxlen=_STEPS_IN_ETA)
        self._started = time.monotonic()
        self._bar = None
        if console.is_terminal:
            self._bar = Bar(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[numbers]}"),
                console=console,
            )
            self._task = self._bar.add_task("steps", total=total_steps, completed=first_step, numbers="")
            self._bar.start()

    def restart_clock(self) -> None:
        """What happened since the last step (start-up, an evaluation) is not part of the next one."""
        self._started = time.monotonic()

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        now = time.monotonic()
        self._seconds.append(now - self._started)
        self._started = now
        numbers = self._numbers(step, metrics)
        if self._bar is None:
            self.say(f"step {step}/{self._total_steps}  {numbers}")
        else:
            self._bar.update(self._task, completed=step, numbers=numbers)

    def say(self, text: str) -> None:
        # As Text: paths and model output may hold what rich reads as markup. Unwrapped: a log has no width.
        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _numbers(self, step: int, metrics: Mapping[str, float | None]) -> str:
        parts = [
            f"{label} {form.format(value)}"
            for key, label, form in _SHOWN
            if (value := metrics.get(key)) is not None
        ]
        parts.append(f"{self._seconds[-1]:.1f} s/step")
        if step < self._total_steps:
            parts.append(
                f"eta {duration((self._total_steps - step) * sum(self._seconds) / len(self._seconds))}"
            )
        return "  ".join(parts)


def labelled(shown: Sequence[tuple[str, str, str]], metrics: Mapping[str, float | None]) -> list[str]:
    """`["reward +0.25", ...]` of those (key, label, format) that were measured."""
    return [
        f"{label} {form.format(metrics[key])}" for key, label, form in shown if metrics.get(key) is not None
    ]


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
