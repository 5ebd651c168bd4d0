"""What a person sees of a run while it goes on: one moving line on a terminal, one line a step in a log."""

from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from nemo_simplerl.trainer.logging.screen import print_line

# (metric, label, format)
_OF_A_STEP = (
    ("reward/mean", "reward", "{:+.2f}"),
    ("reward/correct_share", "accuracy", "{:.0%}"),
    ("rollout/length_mean", "length", "{:.0f}"),
)
_OF_AN_EVALUATION = (
    ("eval/accuracy", "accuracy", "{:.1%}"),
    ("eval/sampled_accuracy", "sampled", "{:.1%}"),
    ("eval/format_rate", "answered", "{:.1%}"),
    ("eval/length_mean", "length", "{:.0f}"),
)
_STEPS_IN_ETA = 20  # responses grow and shrink, so old steps say little of the coming ones


class Progress:
    """Lines of text from the beginning; counts steps once `start` has said how many there are."""

    def __init__(self, console: Console):
        self._console = console
        self._bar: Bar | None = None
        self._total_steps = 0
        self._seconds: deque[float] = deque(maxlen=_STEPS_IN_ETA)

    def start(self, total_steps: int, *, done: int) -> None:
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
        """Step 0 is the evaluation before the first step, and no step of its own."""
        if step > 0:
            numbers = "  ".join([*_labelled(_OF_A_STEP, metrics), *self._times(step, metrics)])
            if self._bar is None:
                print_line(self._console, f"step {step}/{self._total_steps}  {numbers}")
            else:
                self._bar.update(self._task, completed=step, numbers=numbers)
        if evaluated := _labelled(_OF_AN_EVALUATION, metrics):
            print_line(self._console, f"evaluation after step {step}: {', '.join(evaluated)}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _times(self, step: int, metrics: Mapping[str, float | None]) -> list[str]:
        total = metrics.get("time/total")
        if total is None:
            return []
        # Evaluations belong to the time that is left, not to the pace of a step.
        self._seconds.append(total)
        times = [f"{total - (metrics.get('time/eval') or 0.0):.1f} s/step"]
        if step < self._total_steps:
            mean = sum(self._seconds) / len(self._seconds)
            times.append(f"eta {duration((self._total_steps - step) * mean)}")
        return times


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _labelled(shown: Sequence[tuple[str, str, str]], metrics: Mapping[str, float | None]) -> list[str]:
    """`["reward +0.25", ...]` of those that were measured."""
    return [f"{label} {form.format(metrics[key])}" for key, label, form in shown if metrics.get(key) is not None]
