"""Problems with their gold answers, and the prompts made of them."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemo_simplerl.data.chats import Chat, asks_for_a_box, has_system_turn, is_chat, read_chat
from nemo_simplerl.data.rows import Row, fields_of, name_rows, read_rows, value_at
from nemo_simplerl.data.templates import CHAT, WorkedExample, encode_prompts, renderer
from nemo_simplerl.reward.gold import Gold, check_golds, read_gold

if TYPE_CHECKING:  # transformers takes seconds to load, and a problem is text
    from transformers import PreTrainedTokenizerBase

_MAX_PROSE_SHARE = 0.25  # of a file's gold answers; CollegeMath, the benchmark with most, has 0.06


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer."""

    id: str
    question: str
    answer: str  # the gold
    level: int | None
    subject: str | None
    chat: Chat | None = None  # as the file has it, where it has more than the question


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem rendered by a template and tokenized."""

    problem: Problem
    text: str  # that token_ids encodes; a BOS that the tokenizer puts before every text is not in it
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptReport:
    """How many problems became prompts, and which were dropped or cut."""

    num_kept: int
    num_truncated: int
    dropped_ids: tuple[str, ...]
    longest: int  # tokens of the longest prompt before any was dropped or cut
    num_systems_left_out: int = 0  # chats whose system turn gave way to the template's
    num_without_box: int = 0  # chats, written as they stand, that ask for no box
    num_shown: int = 0  # problems that every prompt shows with their answers

    @property
    def num_dropped(self) -> int:
        return len(self.dropped_ids)

    def notes(self) -> list[str]:
        """What happened to the prompts beyond their number, in words."""
        counts = {
            "dropped as too long": self.num_dropped,
            "cut to the limit": self.num_truncated,
            "system messages left out, as the template has its own (data.template=chat writes them)": (
                self.num_systems_left_out
            ),
            r"chats ask for no \boxed{} answer, without which a response earns reward.no_answer": self.num_without_box,
            "problems stand in data.examples with their answers": self.num_shown,
        }
        return [f"{count} {what}" for what, count in counts.items() if count]


@dataclass(frozen=True)
class Fields:
    """Names of the fields of question and gold answer, `a.b` where they are nested; and how the user gives them."""

    question: str
    answer: str
    options: tuple[str, str] = ("data.question_field=", "data.answer_field=")
    drop_option: str | None = "data.rows_without_gold=drop"  # leaves out rows without a gold; None: there is none


@dataclass(frozen=True)
class GoldReport:
    """What became of a file's gold answers."""

    left_out: Mapping[str, int]  # how many rows were left out, by the reason
    forms: Mapping[str, int]  # how many were taken out of a longer text, by its form
    num_prose: int  # of the golds that are kept, those that are sentences
    text_alone: Sequence[str]  # and those of which the text alone is compared

    def notes(self) -> list[str]:
        """What a reader should know of the gold answers, in words; nothing where all stand there as they are."""
        notes = []
        if self.forms:
            forms = ", ".join(f"{form}: {count}" for form, count in self.forms.items())
            count = sum(self.forms.values())
            what = "answer taken out of a longer value" if count == 1 else "answers taken out of longer values"
            notes.append(f"{count} gold {what} ({forms})")
        if self.left_out:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.left_out.items())
            count = sum(self.left_out.values())
            what = "row left out that has" if count == 1 else "rows left out that have"
            notes.append(f"{count} {what} no gold answer ({reasons})")
        if self.num_prose:
            notes.append(f"sentences as gold answers, which hardly any response will repeat: {self.num_prose}")
        if self.text_alone:
            notes.append(
                "gold answers that are neither mathematics nor words, so that a response must repeat their text: "
                f"{len(self.text_alone)} (such as {_shortened(self.text_alone[0])!r})"
            )
        return notes


def load_problems(
    path: str | Path,
    question_field: str,
    answer_field: str,
    *,
    without_gold: Literal["error", "drop"] = "error",
    is_graded: bool = True,
) -> tuple[list[Problem], GoldReport]:
    """The problems of a file, in its order, and what became of their gold answers.

    A question is text, a number or a chat that ends in a question. `level` ("Level 5" or 5) and `subject` are read
    where they are; a row without an `id` is called row-<index>. Gold answers are taken out of longer values by rule
    (`reward/gold.py`). Rows with which no response can be right are refused, or left out under "drop" (2 of the 8,523
    of the SimpleRL training set): those without a gold answer, with one that the grader does not accept of itself, and,
    where they are more than a quarter of the file, with sentences or placeholders in its place. Raises ValueError for
    them, for rows without a question, for a file that cannot be read, and when no problem is left.

    is_graded: whether the grader reads the gold answers; a reward function of the user's may make something of any.
    """
    fields = Fields(question_field, answer_field)
    return to_problems(read_rows(path), path, fields, without_gold=without_gold, is_graded=is_graded)


def to_problems(
    rows: Sequence[Row],
    path: str | Path,
    fields: Fields,
    *,
    without_gold: Literal["error", "drop", "keep"],
    is_graded: bool = True,
) -> tuple[list[Problem], GoldReport]:
    """`load_problems` for rows already read from `path`.

    Under "keep" every row is kept, and the answer of one without gold is empty.
    """
    questions = [_read_question(value_at(row, fields.question)) for row in rows]
    if unasked := {index: fault for index, (_, _, fault) in enumerate(questions) if fault}:
        raise ValueError(_refusal(path, rows, fields, fields.question, unasked))
    golds = [read_gold(value_at(row, fields.answer)) for row in rows]
    faults: dict[int, str] = {index: gold.fault for index, gold in enumerate(golds) if gold.fault}
    num_prose, text_alone = 0, list[str]()
    if is_graded:
        faults, num_prose, text_alone = _judge_golds(golds, 1.0 if without_gold == "keep" else _MAX_PROSE_SHARE)
    if without_gold == "keep" and len(faults) < len(rows):
        faults = {}
    if faults and (without_gold == "error" or len(faults) == len(rows)):
        raise ValueError(_refusal(path, rows, fields, fields.answer, faults))
    problems = [
        _problem(index, row, text, chat, gold)
        for index, (row, (text, chat, _), gold) in enumerate(zip(rows, questions, golds, strict=True))
        if index not in faults
    ]
    forms = Counter(gold.form for index, gold in enumerate(golds) if gold.form and index not in faults)
    return problems, GoldReport(Counter(faults.values()), forms, num_prose, text_alone)


def problems_of(
    path: Path, fields: Mapping[str, str], *, without_gold: Literal["error", "drop", "keep"] = "keep"
) -> tuple[list[Problem], GoldReport]:
    """The problems of a file that is named on the command line, as `to_problems` finds them.

    `fields` maps id, question, answer, level and subject to the names that the file has for them. Raises ValueError.
    """
    own = {name: theirs for name, theirs in fields.items() if name in ("id", "level", "subject")}
    rows = [
        row | {name: value for name, theirs in own.items() if (value := value_at(row, theirs)) is not None}
        for row in read_rows(path)
    ]
    question, answer = fields.get("question", "question"), fields.get("answer", "answer")
    named = Fields(question, answer, options=("--question ", "--answer "), drop_option=None)
    return to_problems(rows, path, named, without_gold=without_gold)


def question_as_written(problem: Problem) -> str | list[dict[str, str]]:
    """The question for a row of JSON: its text, or the chat that it ends, as a list of messages."""
    return problem.question if problem.chat is None else [turn._asdict() for turn in problem.chat]


def levels_and_subjects(path: Path) -> dict[str, tuple[int | None, str | None]]:
    """Level and subject of every row of a file, where they are there, by the ids of `load_problems`."""
    return {_id(index, row): (_level(row.get("level")), _subject(row)) for index, row in enumerate(read_rows(path))}


def render_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    *,
    trailing_newline: bool,
    max_prompt_tokens: int,
    overlong: Literal["drop", "truncate", "error"],
    examples: Sequence[WorkedExample] = (),
) -> tuple[list[Prompt], PromptReport]:
    """Render and tokenize the problems' prompts, which begin with a BOS where the tokenizer itself puts one, and with
    the worked examples.

    Prompts above `max_prompt_tokens` are dropped, cut to their first tokens (a quirk of the SimpleRL recipe:
    the cut loses the assistant's turn), or refused. Raises ValueError for a refused one and when no prompt is
    left.
    """
    prompt_of = renderer(template, tokenizer, trailing_newline=trailing_newline, examples=examples)
    texts = [_rendered(prompt_of, problem) for problem in problems]
    ids = encode_prompts(tokenizer, texts)
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
    is_cut, shown = overlong == "truncate", {example.question for example in examples}
    chats = [problem.chat for problem in problems if problem.chat is not None]
    return prompts, PromptReport(
        num_kept=len(prompts),
        num_truncated=len(too_long) if is_cut else 0,
        dropped_ids=() if is_cut else tuple(too_long),
        longest=longest,
        num_systems_left_out=0 if template == CHAT else sum(map(has_system_turn, chats)),
        num_without_box=sum(not asks_for_a_box(chat) for chat in chats) if template == CHAT and not examples else 0,
        num_shown=sum(problem.question in shown for problem in problems),
    )


def _rendered(prompt_of: Callable[[str | Chat], str], problem: Problem) -> str:
    try:
        return prompt_of(problem.chat or problem.question)
    except ValueError as error:
        raise ValueError(f"{problem.id}: {error}") from error


def _read_question(value: Any) -> tuple[str, Chat | None, str | None]:
    """The question in a row's value, the chat that it ends, if any, and what is wrong with it."""
    if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        return text, None, None if text.strip() else "it is empty"
    if not is_chat(value):
        return "", None, "it is missing" if value is None else "it is neither text, nor a number, nor a chat"
    try:
        chat = read_chat(value)
    except ValueError as error:
        return "", None, str(error)
    asked = chat[-1]
    is_question = asked.role == "user" and asked.content.strip()
    return asked.content, chat, None if is_question else "its chat does not end in a question of the user"


def _judge_golds(golds: Sequence[Gold], max_prose_share: float) -> tuple[dict[int, str], int, list[str]]:
    """Why golds can be of no use, by row; and of the others the number of sentences, and the texts alone."""
    check = check_golds([gold.text for gold in golds])
    faults = dict.fromkeys(check.unreachable, "the grader does not accept it of itself")
    faults |= {index: gold.fault for index, gold in enumerate(golds) if gold.fault}
    if len(check.prose) + len(check.text_alone) > max_prose_share * len(golds):
        faults = (
            dict.fromkeys(check.text_alone, "it is neither mathematics nor words, and a response must repeat it")
            | faults
        )
        faults = dict.fromkeys(check.prose, "it is sentences, which no response will repeat") | faults
        return dict(sorted(faults.items())), 0, []
    return dict(sorted(faults.items())), len(check.prose), [golds[index].text for index in check.text_alone]


def _refusal(path: str | Path, rows: Sequence[Row], fields: Fields, field: str, faults: Mapping[int, str]) -> str:
    """The message for rows whose `field`, that of the question or of the gold answer, cannot be used."""
    counts = Counter(faults.values())
    reasons = counts.popitem()[0] if len(counts) == 1 else ", ".join(f"{why}: {count}" for why, count in counts.items())
    first = next(iter(faults))
    value = value_at(rows[first], field)
    example = "" if value is None else f", as in row {first}, {_shortened(value)!r}"
    question, answer = fields.options
    remedy = f"Name the fields of question and gold answer with {question}FIELD and {answer}FIELD, or mend the rows"
    if field == fields.answer and fields.drop_option and len(faults) < len(rows):
        remedy += f", or leave them out with {fields.drop_option}"
    return (
        f"{path}: {name_rows(list(faults))} without a {field!r} that can be used: {reasons}{example}. "
        f"The fields of row {first}: {', '.join(fields_of(rows[first]))}. {remedy}"
    )


def _shortened(value: Any, length: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[:length] + "..."


def _problem(index: int, row: Row, question: str, chat: Chat | None, gold: Gold) -> Problem:
    return Problem(
        id=_id(index, row),
        question=question,
        answer=gold.text,
        level=_level(row.get("level")),
        subject=_subject(row),
        chat=chat,
    )


def _id(index: int, row: Row) -> str:
    given = row.get("id")
    return f"row-{index}" if given is None else str(given)


def _subject(row: Row) -> str | None:
    subject = row.get("subject")
    return subject if isinstance(subject, str) and subject.strip() else None


def _level(value: Any) -> int | None:
    digits = re.search(r"\d+", str(value))
    return int(digits.group()) if digits else None
