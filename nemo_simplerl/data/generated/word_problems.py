"""Word problems of one and two steps in plain English, made from a seed: sums, products and equal shares.

They are for a small pretrained model, which reads English and calculates badly. There are no demonstrations.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_simplerl.data.generated.drawing import draw, problem_rows, write_missing

NAMES = ("Ann", "Ben", "Eva", "Kim", "Leo", "Max", "Mia", "Sam", "Tom", "Zoe")
ITEMS = ("apples", "books", "cards", "coins", "marbles", "pencils", "shells", "stamps", "stickers", "stones")
# Stories by the operations that they tell, in order: + is a sum, * a product, / an equal share. {0} is the number that
# is there at first, {1} and {2} those that the operations bring; {a}, {b}, {c} are children.
STORIES: dict[str, tuple[str, ...]] = {
    "+": (
        "{a} has {0} {items} and {b} has {1} {items}. How many {items} do they have together?",
        "There are {0} {items} in a box. {a} puts {1} more {items} into it. How many {items} are in the box now?",
        "{a} finds {0} {items} on Monday and {1} {items} on Tuesday. How many {items} does {a} find in all?",
    ),
    "*": (
        "{a} has {0} bags with {1} {items} in each bag. How many {items} does {a} have?",
        "There are {0} shelves with {1} {items} on each shelf. How many {items} are there?",
        "{a} collects {1} {items} every day. How many {items} does {a} collect in {0} days?",
    ),
    "/": (
        "{a} shares {0} {items} equally among {1} friends. How many {items} does each friend get?",
        "{0} {items} are packed into {1} boxes, the same number in each. How many {items} are in one box?",
        "{a} puts {0} {items} into bags of {1}. How many bags does {a} need?",
    ),
    "++": (
        "{a} has {0} {items}, {b} has {1} {items} and {c} has {2} {items}. How many {items} do they have together?",
        "{a} has {0} {items}. {b} gives {a} {1} {items} and {c} gives {a} {2} {items}. "
        "How many {items} does {a} have now?",
    ),
    "*+": (
        "{a} has {0} bags with {1} {items} in each, and finds {2} more {items}. How many {items} does {a} have now?",
        "There are {0} shelves with {1} {items} on each, and {2} {items} on the floor. How many {items} are there?",
    ),
    "+*": (
        "A bag holds {0} red {items} and {1} blue {items}. How many {items} are in {2} such bags?",
        "Every day {a} finds {0} {items} and {b} finds {1} {items}. How many {items} do they find in {2} days?",
    ),
    "+/": (
        "{a} has {0} {items} and {b} has {1} {items}. They share all of them equally among {2} friends. "
        "How many {items} does each friend get?",
        "There are {0} red {items} and {1} blue {items}. All are packed into {2} boxes, the same number in each. "
        "How many {items} are in one box?",
    ),
    "*/": (
        "{a} has {0} bags with {1} {items} in each bag, and shares all of them equally among {2} friends. "
        "How many {items} does each friend get?",
    ),
    "/+": (
        "{a} shares {0} {items} equally among {1} friends, and then gives each friend {2} more {items}. "
        "How many {items} does each friend have?",
    ),
    "/*": (
        "{0} {items} are packed into {1} boxes, the same number in each. How many {items} are in {2} of these boxes?",
    ),
}


@dataclass(frozen=True)
class Task:
    """Sizes of the files, the share of problems of two steps, and bounds on the numbers: they make it easy or hard."""

    num_train: int = 4_000
    num_eval: int = 400
    share_of_two_steps: float = 0.25
    max_number: int = 20  # of a sum's parts
    max_factor: int = 9  # of a product, and of an equal share and its parts
    max_result: int = 100  # of every step

    def __post_init__(self) -> None:
        assert min(self.max_number, self.max_factor) >= 2, "numbers begin with 2"


ONE_AND_TWO_STEPS = Task()
TWO_STEPS = Task(share_of_two_steps=1.0)


@dataclass(frozen=True)
class Exercise:
    """The operations of a problem, a key of STORIES, and its numbers: one more than there are operations."""

    operations: str
    numbers: tuple[int, ...]

    def results(self) -> list[int] | None:
        """The result of each step, in order; None where something would be shared unequally."""
        first, *others = self.numbers
        results = [first]
        for operation, number in zip(self.operations, others, strict=True):
            if operation == "/" and results[-1] % number:
                return None
            total = results[-1]
            results.append({"+": total + number, "*": total * number, "/": total // number}[operation])
        return results[1:]

    @property
    def answer(self) -> int:
        results = self.results()
        assert results is not None
        return results[-1]

    @property
    def without_order(self) -> "Exercise":
        """The exercise with the numbers of its first step in ascending order where they may change places: 3 + 4 and
        4 + 3 are one exercise to whoever learns one of them by heart."""
        first, second, *others = self.numbers
        numbers = (first, second) if self.operations[0] == "/" else (min(first, second), max(first, second))
        if self.operations == "++":
            numbers, others = tuple(sorted(self.numbers)), []
        return Exercise(self.operations, (*numbers, *others))


def write_task(
    train_path: str | Path,
    eval_path: str | Path | None,
    sft_path: str | Path | None = None,
    *,
    seed: int,
    task: Task = ONE_AND_TWO_STEPS,
) -> list[Path]:
    """Write the files that are not there yet and return their paths. Seed and task alone decide the bytes.

    Rows: id, question, answer, level (the number of steps). No question appears twice, and no exercise of eval appears
    in train, in whatever words and order. Nothing is written at sft_path. Raises ValueError when the task's numbers are
    too small for so many problems.
    """
    rng = random.Random(f"word_problems/{seed}")

    def drawn(count: int, questions: set[str], *, held_out: bool) -> dict[str, Exercise]:
        def propose() -> tuple[str, Exercise]:
            exercise = _exercise(rng, task, seed, held_out=held_out)
            return _question(rng, exercise), exercise

        return draw(count, propose, lambda exercise: True, questions=questions, task=task)

    # Always drawn in this order, whichever are written: a file does not depend on the presence of another.
    evaluation = drawn(task.num_eval, set(), held_out=True)
    train = drawn(task.num_train, set(evaluation), held_out=False)
    return write_missing([(train_path, problem_rows("train", train)), (eval_path, problem_rows("eval", evaluation))])


def _exercise(rng: random.Random, task: Task, seed: int, *, held_out: bool) -> Exercise:
    """An exercise of eval, or of train. Its operations are drawn first and kept: no kind of exercise becomes rare in a
    file because many of its numbers are unfit, or in the other file."""
    num_steps = 2 if rng.random() < task.share_of_two_steps else 1
    operations = rng.choice([name for name in STORIES if len(name) == num_steps])
    for _ in range(1_000):
        first, *others = (rng.randint(2, task.max_number if sign == "+" else task.max_factor) for sign in operations)
        start = rng.randint(2, task.max_number if operations[0] == "+" else task.max_factor)
        # What is shared at first is a multiple of those who share it; a later share is drawn until it is equal.
        exercise = Exercise(operations, (start * first if operations[0] == "/" else start, first, *others))
        if _is_within(exercise, task) and _is_held_out(exercise, seed) == held_out:
            return exercise
    raise ValueError(
        f"found no exercise {operations!r} for {'eval' if held_out else 'train'}; allow larger numbers: {task}"
    )


def _is_within(exercise: Exercise, task: Task) -> bool:
    results = exercise.results()
    return results is not None and all(2 <= result <= task.max_result for result in results)


def _is_held_out(exercise: Exercise, seed: int) -> bool:
    """Whether eval asks it, and train never: one exercise in five, chosen by the seed."""
    return zlib.crc32(f"{seed}/{exercise.without_order}".encode()) % 5 == 0


def _question(rng: random.Random, exercise: Exercise) -> str:
    children: Sequence[str] = rng.sample(NAMES, 3)
    story, items = rng.choice(STORIES[exercise.operations]), rng.choice(ITEMS)
    a, b, c = children
    return story.format(*exercise.numbers, a=a, b=b, c=c, items=items)
