"""Problems with their gold answers, and the prompts made of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemo_simplerl.data.rows import Row, name_rows, read_rows
from nemo_simplerl.data.templates import renderer

if TYPE_CHECKING:  # transformers takes seconds to load, and a problem is text
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer."""

    id: str
    question: str
    answer: str  # the gold, as written
    level: int | None
    subject: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem rendered by a template and tokenized."""

    problem: Problem
    text: str  # that token_ids encodes
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptReport:
    """How many problems became prompts, and which were dropped or cut."""

    num_kept: int
    num_truncated: int
    dropped_ids: tuple[str, ...]
    longest: int  # tokens of the longest prompt before any was dropped or cut

    @property
    def num_dropped(self) -> int:
        return len(self.dropped_ids)


def load_problems(
    path: str | Path,
    question_field: str,
    answer_field: str,
    *,
    without_gold: Literal["error", "drop"] = "error",
) -> tuple[list[Problem], int]:
    """The problems of a .json or .jsonl file, in its order, and how many rows were left out for want of a gold answer.

    `level` ("Level 5" or 5) and `subject` are read where they are; a row without an `id` is called
    row-<index>. No response can be right where the gold answer is missing or empty: such rows are refused, or
    left out under "drop" (2 of the 8,523 of the SimpleRL training set). Raises ValueError for them, for rows
    without a question, for a file that cannot be read, and when no problem is left.
    """
    return to_problems(read_rows(path), path, question_field, answer_field, without_gold=without_gold)


def to_problems(
    rows: Sequence[Row],
    path: str | Path,
    question_field: str,
    answer_field: str,
    *,
    without_gold: Literal["error", "drop", "keep"],
) -> tuple[list[Problem], int]:
    """`load_problems` for rows already read from `path`. Under "keep" the answer of a row without gold is empty."""
    for field in (question_field, answer_field):
        missing = [index for index, row in enumerate(rows) if not _text(row.get(field))]
        may_drop = field == answer_field and without_gold != "error" and len(missing) < len(rows)
        if missing and not may_drop:
            raise ValueError(
                f"{path}: {name_rows(missing)} without a {field!r} that is non-empty text or a number. "
                f"The fields of row {missing[0]}: {', '.join(rows[missing[0]])}. Set data.question_field and "
                "data.answer_field to the fields that hold question and gold answer, or remove the rows"
            )
    problems = [
        _problem(index, row, question_field, answer_field)
        for index, row in enumerate(rows)
        if without_gold == "keep" or _text(row.get(answer_field))
    ]
    return problems, len(rows) - len(problems)


def render_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    *,
    trailing_newline: bool,
    max_prompt_tokens: int,
    overlong: Literal["drop", "truncate", "error"],
) -> tuple[list[Prompt], PromptReport]:
    """Render and tokenize the problems' prompts. No BOS is added: the template is the whole prompt.

    Prompts above `max_prompt_tokens` are dropped, cut to their first tokens (a quirk of the SimpleRL recipe:
    the cut loses the assistant's turn), or refused. Raises ValueError for a refused one and when no prompt is
    left.
    """
    prompt_of = renderer(template, tokenizer, trailing_newline=trailing_newline)
    texts = [prompt_of(problem.question) for problem in problems]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    longest = max(map(len, ids), default=0)
    too_long = [problem.id for problem, row in zip(problems, ids, strict=True) if len(row) > max_prompt_tokens]
    advice = "raise rollout.max_prompt_tokens"
    if too_long and overlong == "error":
        raise ValueError(
            f"{len(too_long)} of {len(ids)} prompts have more than {max_prompt_tokens} tokens, "
            f"the longest {longest} (first: {', '.join(too_long[:5])}); "
            f"{advice} or set data.overlong_prompts=drop"
        )

    prompts = []
    for problem, text, row in zip(problems, texts, ids, strict=True):
        if len(row) <= max_prompt_tokens:
            prompts.append(Prompt(problem, text, tuple(row)))
        elif overlong == "truncate":
            kept = row[:max_prompt_tokens]
            prompts.append(Prompt(problem, tokenizer.decode(kept, clean_up_tokenization_spaces=False), tuple(kept)))
    if not prompts:
        raise ValueError(
            f"no prompt is left of {len(ids)} problems with at most {max_prompt_tokens} tokens a prompt "
            f"(the longest has {longest}); {advice} or bring other problems"
        )
    is_cut = overlong == "truncate"
    return prompts, PromptReport(
        num_kept=len(prompts),
        num_truncated=len(too_long) if is_cut else 0,
        dropped_ids=() if is_cut else tuple(too_long),
        longest=longest,
    )


def _problem(index: int, row: Row, question_field: str, answer_field: str) -> Problem:
    return Problem(
        id=str(row.get("id", f"row-{index}")),
        question=_text(row[question_field]),
        answer=_text(row.get(answer_field)),
        level=_level(row.get("level")),
        subject=_text(row.get("subject")) or None,
    )


def _text(value: Any) -> str:
    """Text or a number as text, a whole float without its ".0"; "" for anything else and for blank text."""
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _level(value: Any) -> int | None:
    digits = re.search(r"\d+", str(value))
    return int(digits.group()) if digits else None
