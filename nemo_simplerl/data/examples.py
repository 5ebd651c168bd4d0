"""The worked examples of data.examples: a base model goes on in their form, and finds its first rewards by it."""

from collections.abc import Sequence
from typing import Any

from nemo_simplerl.config.schema import Config, DataConfig
from nemo_simplerl.data.rows import read_rows
from nemo_simplerl.data.templates import WorkedExample, next_question
from nemo_simplerl.reward.grade import grade_text

_WRITE = 'write each as {"question": ..., "response": ..., "answer": ...}'


def examples_of(data: DataConfig) -> tuple[WorkedExample, ...]:
    """The worked examples of data.examples. Raises ValueError as `read_examples` does."""
    return read_examples(data.examples)


def read_examples(given: Sequence[dict[str, Any]] | str | None) -> tuple[WorkedExample, ...]:
    """The worked examples given as rows, or as the path of a file of rows; none for None.

    Raises ValueError for a file that cannot be read, no rows, and rows without one of the fields.
    """
    if given is None:
        return ()
    rows = read_rows(given) if isinstance(given, str) else given
    if not rows:
        raise ValueError(f"data.examples holds none; {_WRITE}, or set data.examples=null")
    lacking = {index: name for index, row in enumerate(rows) for name in WorkedExample._fields if not _text(row, name)}
    if lacking:
        index, name = next(iter(lacking.items()))
        raise ValueError(f"{_name(given, index)} has no text as its {name!r}; {_WRITE}")
    return tuple(WorkedExample(*(_text(row, name) for name in WorkedExample._fields)) for row in rows)


def stops_of(data: DataConfig) -> tuple[str, ...]:
    """The text at which a response in the form of the worked examples ends, where no token of the model's does it.

    A base model ends nothing: it goes on with a question of its own. The end of the line where every example is one
    line, else the empty line between two examples, or that with what stands before a question.
    """
    examples = examples_of(data)
    after = next_question(data.template)
    if not examples or not after.startswith("\n"):  # turns of a chat end in a token
        return ()
    return next(((end,) for end in ("\n", "\n\n") if not any(end in row.response for row in examples)), (after,))


def check_examples(config: Config) -> None:
    """Raise ValueError with everything that is wrong with the worked examples.

    Each response must be graded right against its own answer, where the reward is the project's own, and hold no text
    that ends a response: the model would learn to answer wrong, or to stop too early.
    """
    examples = examples_of(config.data)
    problems = []
    for index, example in enumerate(examples):
        where = _name(config.data.examples, index)
        if config.reward.function is None and (verdict := grade_text(example.answer, example.response)) != "correct":
            problems.append(
                f"{where}: its response is graded {verdict} against its answer {example.answer!r}. "
                r"End it in the right answer, as \boxed{...}."
            )
        if ends := [end for end in (*config.rollout.stop, *stops_of(config.data)) if end in example.response]:
            problems.append(
                f"{where}: its response holds {ends[0]!r}, where a response would end. Write it without, or leave "
                "that out of rollout.stop."
            )
    if problems:
        raise ValueError("; ".join(problems))


def check_room(examples: Sequence[WorkedExample], tokenizer: Any, max_response_tokens: int) -> None:
    """Raise ValueError where the response of a worked example is longer than a response may be, in tokens."""
    lengths = [len(tokenizer(row.response, add_special_tokens=False)["input_ids"]) for row in examples]
    if (longest := max(lengths, default=0)) >= max_response_tokens:
        raise ValueError(
            f"the longest response of data.examples has {longest} tokens, and rollout.max_response_tokens="
            f"{max_response_tokens} cuts one like it. Set it to {2 * longest} or more, or bring shorter examples."
        )


def _text(row: Any, name: str) -> str:
    """The text of a field, or "" without one. YAML reads an answer such as 7 as a number."""
    value = row.get(name)
    is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value).rstrip() if is_text else ""


def _name(given: Sequence[dict[str, Any]] | str | None, index: int) -> str:
    return f"{given}: row {index}" if isinstance(given, str) else f"data.examples[{index}]"
