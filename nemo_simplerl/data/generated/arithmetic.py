"""The quickstart's task: short word problems in arithmetic, made from a seed.

A demonstration answers in one of four styles. The commonest one works step by step but boxes nothing; another boxes an
answer without any work, which a small model seldom gets right; the careful one does both. Imitation therefore leaves a
model whose likeliest response scores nothing, and reinforcement learning has something to find: work step by step, and
box.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from nemo_simplerl.data.generated.drawing import draw, problem_rows, write_missing
from nemo_simplerl.data.rows import Row

Operation = tuple[str, int]  # "+", "-" or "*", and the number on its right

NAMES = ("Ann", "Ben", "Eva", "Kim", "Leo", "Max", "Sam", "Tom")
ITEMS = ("books", "cards", "coins", "cups", "keys", "pens", "shells", "stones")
STORY = {
    "+": ("Then buys {number}.", "Then finds {number}.", "Then gets {number}."),
    "-": ("Then gives {number}.", "Then loses {number}.", "Then sells {number}."),
    "*": ("Then makes it {number} times as many.",),
}
PLAIN = {"+": "Add {number}.", "-": "Subtract {number}.", "*": "Multiply by {number}."}


@dataclass(frozen=True)
class Task:
    """Sizes of the files, bounds on the numbers, and shares of the styles: they make the task easy or hard."""

    num_train: int = 4_000
    num_eval: int = 600
    num_sft: int = 20_000
    share_of_three_operations: float = 0.3  # the others have two
    max_start: int = 15
    max_operand: int = 9  # of + and -
    max_factor: int = 2
    max_result: int = 30  # of every operation; none goes below 1
    # Shares of the styles among the demonstrations.
    hasty: float = 0.20
    careful: float = 0.30
    plain: float = 0.40
    code: float = 0.10


DEFAULT_TASK = Task()


@dataclass(frozen=True)
class Exercise:
    """A number and the operations applied to it from left to right, without precedence."""

    start: int
    operations: tuple[Operation, ...]

    def steps(self) -> list[tuple[str, int]]:
        """The operations as text, such as "12+7", each with its result."""
        steps, total = [], self.start
        for symbol, number in self.operations:
            text = f"{total}{symbol}{number}"
            total = {"+": total + number, "-": total - number, "*": total * number}[symbol]
            steps.append((text, total))
        return steps

    @property
    def answer(self) -> int:
        return self.steps()[-1][1]

    def expression(self) -> str:
        """The whole exercise as Python reads it: "(12+7)*3"."""
        text = str(self.start)
        for symbol, number in self.operations:
            is_sum = symbol == "*" and ("+" in text or "-" in text)
            text = f"({text}){symbol}{number}" if is_sum else f"{text}{symbol}{number}"
        return text


def write_task(
    train_path: str | Path,
    eval_path: str | Path | None,
    sft_path: str | Path | None,
    *,
    seed: int,
    task: Task = DEFAULT_TASK,
) -> list[Path]:
    """Write the files that are not there yet and return their paths. Seed and task alone decide the bytes.

    Rows of train and eval: id, question, answer, level (the number of operations). Rows of sft: question,
    response, style. No question appears twice, and no exercise of eval appears in another file. Raises
    ValueError when the task's numbers are too small for so many problems.
    """
    rng = random.Random(f"arithmetic/{seed}")

    def propose() -> tuple[str, Exercise]:
        exercise = _exercise(rng, task)
        return _question(rng, exercise), exercise

    # Always drawn in this order, whichever are written: a file does not depend on the presence of another.
    evaluation = draw(task.num_eval, propose, lambda one: _is_within(one, task), questions=set(), task=task)
    held_out, questions = frozenset(evaluation.values()), set(evaluation)
    train, sft = (
        draw(
            count,
            propose,
            lambda one: one not in held_out and _is_within(one, task),
            questions=questions,
            task=task,
        )
        for count in (task.num_train, task.num_sft)
    )
    return write_missing(
        [
            (train_path, problem_rows("train", train)),
            (eval_path, problem_rows("eval", evaluation)),
            (sft_path, _sft_rows(rng, task, sft)),
        ]
    )


def respond(exercise: Exercise, style: str) -> str:
    """A demonstration in the style "hasty", "careful", "plain" or "code". Only the first two box the answer."""
    steps = [f"{text}={result}" for text, result in exercise.steps()]
    if style == "hasty":
        return f"\\boxed{{{exercise.answer}}}"
    if style == "careful":
        return "".join(f"{step}\n" for step in steps) + f"\\boxed{{{exercise.answer}}}"
    if style == "plain":
        return "First " + ", then ".join(steps) + "."
    assert style == "code", style
    return f"print({exercise.expression()})"


def _exercise(rng: random.Random, task: Task) -> Exercise:
    operations = []
    for _ in range(3 if rng.random() < task.share_of_three_operations else 2):
        symbol = rng.choice("+-*")
        operations.append((symbol, rng.randint(2, task.max_factor if symbol == "*" else task.max_operand)))
    return Exercise(rng.randint(2, task.max_start), tuple(operations))


def _is_within(exercise: Exercise, task: Task) -> bool:
    return all(1 <= result <= task.max_result for _, result in exercise.steps())


def _question(rng: random.Random, exercise: Exercise) -> str:
    if rng.random() < 0.25:
        lines = [PLAIN[symbol].format(number=number) for symbol, number in exercise.operations]
        return f"Start with {exercise.start}. {' '.join(lines)} What is the result?"
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    operations, start = exercise.operations, f"{exercise.start} {items}"
    if operations[0][0] == "*" and rng.random() < 0.5:
        start, operations = f"{operations[0][1]} boxes of {start}", operations[1:]
    lines = [rng.choice(STORY[symbol]).format(name=name, number=number) for symbol, number in operations]
    return f"{name} has {start}. {' '.join(lines)} How many {items}?"


def _sft_rows(rng: random.Random, task: Task, drawn: dict[str, Exercise]) -> list[Row]:
    shares = {"hasty": task.hasty, "careful": task.careful, "plain": task.plain, "code": task.code}
    styles = rng.choices(list(shares), weights=list(shares.values()), k=len(drawn))
    return [
        {"question": question, "response": respond(exercise, style), "style": style}
        for (question, exercise), style in zip(drawn.items(), styles, strict=True)
    ]
