"""The tasks of data.generate by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nemo_simplerl.data.generated import arithmetic, word_problems

# Each takes the paths of train, eval and sft and a seed, writes what is not there yet, and returns the paths it wrote.
_WRITERS: dict[str, Callable[..., list[Path]]] = {
    "arithmetic": arithmetic.write_task,
    "word_problems": word_problems.write_task,
    "two_step_problems": partial(word_problems.write_task, task=word_problems.TWO_STEPS),
}


def write_task(
    name: str, train_path: str | Path, eval_path: str | Path | None, sft_path: str | Path | None, *, seed: int
) -> list[Path]:
    """Write the files of the task `name` that are not there yet, and return their paths. Of the tasks `arithmetic`
    alone has demonstrations: of the others no file is written at `sft_path`."""
    return _WRITERS[name](train_path, eval_path, sft_path, seed=seed)
