"""Progress of a run on the screen: one moving line on a terminal, one line a step in a log file."""

from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from nemo_simplerl.trainer.logging.screen import print_line

# (metric, label, format)
_STEP_NUMBERS = (
    ("reward/mean", "reward", "{:+.2f}"),
    ("reward/correct_share", "accuracy", "{:.0%}"),
    ("rollout/length_mean", "length", "{:.0f}"),
)
_EVALUATION_NUMBERS = (
    ("eval/accuracy", "accuracy", "{:.1%}"),
    ("eval/sampled_accuracy", "sampled", "{:.1%}"),
    ("eval/format_rate", "answered", "{:.1%}"),
    ("eval/length_mean", "length", "{:.0f}"),
)
_STEPS_IN_ETA = 20  # responses grow and shrink, so old steps tell little about the coming ones


class Progress:
    """Prints steps and evaluations to the console; the moving line appears with `start`."""

    def __init__(self, console: Console):
        self._console = console
        self._bar: Bar | None = None
        self._total_steps = 0
        self._seconds: deque[float] = deque(maxlen=_STEPS_IN_ETA)

    def start(self, total_steps: int, *, done: int) -> None:
        """Show the moving line at `done` of `total_steps` steps, on a terminal."""
        self._total_steps = total_steps
        if not self._console.is_terminal:
            return
        self._bar = Bar(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
        )
        self._task = self._bar.add_task("steps", total=total_steps, completed=done, numbers="")
        self._bar.start()

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the metrics of a finished step; step 0 is the evaluation before the first step, and no step itself."""
        if step > 0:
            numbers = "  ".join([*_labelled(_STEP_NUMBERS, metrics), *self._times(step, metrics)])
            if self._bar is None:
                print_line(self._console, f"step {step}/{self._total_steps}  {numbers}")
            else:
                self._bar.update(self._task, completed=step, numbers=numbers)
        if evaluated := _labelled(_EVALUATION_NUMBERS, metrics):
            print_line(self._console, f"evaluation after step {step}: {', '.join(evaluated)}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _times(self, step: int, metrics: Mapping[str, float | None]) -> list[str]:
        total = metrics.get("time/total")
        if total is None:
            return []
        # Evaluations belong to the time that is left, not to the pace of a step; a resumed process's start to none.
        total -= metrics.get("time/start") or 0.0
        self._seconds.append(total)
        times = [f"{total - (metrics.get('time/eval') or 0.0):.1f} s/step"]
        if step < self._total_steps:
            mean = sum(self._seconds) / len(self._seconds)
            times.append(f"eta {duration((self._total_steps - step) * mean)}")
        return times


def duration(seconds: float) -> str:
    """Seconds in the unit that fits: `42 s`, `7 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _labelled(shown: Sequence[tuple[str, str, str]], metrics: Mapping[str, float | None]) -> list[str]:
    """The metrics that were measured, each with its label: `["reward +0.25", ...]`."""
    return [f"{label} {form.format(metrics[key])}" for key, label, form in shown if metrics.get(key) is not None]
