"""What tasks that are made from a seed have in common: distinct exercises, their rows, and files that are not there."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nemo_simplerl.data.rows import Row, write_rows


class Exercise(Protocol):
    """An exercise with its answer. operations: one for each step."""

    @property
    def answer(self) -> int: ...

    @property
    def operations(self) -> Any: ...


E = TypeVar("E", bound=Exercise)


def draw(
    count: int,
    propose: Callable[[], tuple[str, E]],
    is_wanted: Callable[[E], bool],
    *,
    questions: set[str],
    task: object,
) -> dict[str, E]:
    """Draw `count` wanted exercises, by question; none is in `questions`, which grows by them.

    propose: the next question, and its exercise. Raises ValueError that names `task` where its numbers are too small
    for so many.
    """
    drawn: dict[str, E] = {}
    for _ in range(1_000 + 100 * count):
        if len(drawn) == count:
            break
        question, exercise = propose()
        if question not in questions and is_wanted(exercise):
            questions.add(question)
            drawn[question] = exercise
    if len(drawn) < count:
        raise ValueError(
            f"found {len(drawn)} of {count} distinct problems; allow larger numbers or fewer problems: {task}"
        )
    return drawn


def problem_rows(split: str, drawn: Mapping[str, E]) -> list[Row]:
    """Rows of problems: id, question, answer, level (the number of operations)."""
    return [
        {
            "id": f"{split}-{index}",
            "question": question,
            "answer": str(exercise.answer),
            "level": len(exercise.operations),
        }
        for index, (question, exercise) in enumerate(drawn.items())
    ]


def write_missing(contents: Iterable[tuple[str | Path | None, list[Row]]]) -> list[Path]:
    """Write the files that are not there yet, and return their paths. A path of None is no file."""
    missing = [(Path(path), rows) for path, rows in contents if path is not None and not Path(path).exists()]
    for path, rows in missing:
        write_rows(path, rows)
    return [path for path, _ in missing]
