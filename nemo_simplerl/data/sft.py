"""Demonstrations for the warm start: prompts with the response to imitate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.data.rows import Row, name_rows, read_rows
from nemo_simplerl.data.templates import renderer


@dataclass(frozen=True, slots=True)
class SftExample:
    """A prompt with the response to imitate. For `collate` it is a Response that ended by itself."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # ends in EOS

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.response_ids

    @property
    def logprobs(self) -> tuple[float, ...]:
        return (0.0,) * len(self.response_ids)

    @property
    def finish_reason(self) -> str:
        return "stop"


@dataclass(frozen=True)
class SftReport:
    """How many rows became examples, and which were dropped."""

    num_kept: int
    dropped_rows: tuple[int, ...]  # longer than the limit, counted from 0
    longest: int  # tokens of the longest example before any was dropped

    @property
    def num_dropped(self) -> int:
        return len(self.dropped_rows)


def load_sft(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    *,
    trailing_newline: bool,
    max_tokens: int,
    overlong: Literal["drop", "error"],
) -> tuple[list[SftExample], SftReport]:
    """Read and tokenize the rows of a file: a `question` goes through the template, a `prompt` is used as it stands.

    An EOS ends every response. Prompt and response are tokenized apart, as in a rollout. Raises ValueError
    for rows that lack one of the two, for a row above `max_tokens` (prompt, response and EOS) under "error",
    and when none is left.
    """
    rows = read_rows(path)
    _check_rows(path, rows)
    prompt_of = renderer(template, tokenizer, trailing_newline=trailing_newline)
    prompts = [row["prompt"] if "prompt" in row else prompt_of(row["question"]) for row in rows]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer([row["response"] for row in rows], add_special_tokens=False)["input_ids"]
    examples = [
        SftExample(tuple(prompt), _ended(tuple(response), tokenizer.eos_token_id))
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]
    too_long = [index for index, example in enumerate(examples) if len(example) > max_tokens]
    kept = [example for example in examples if len(example) <= max_tokens]
    longest = max(map(len, examples))
    if too_long and (overlong == "error" or not kept):
        raise ValueError(
            f"{path}: {name_rows(too_long)} of {len(rows)} have more than {max_tokens} tokens, "
            f"the longest {longest}; raise sft.max_tokens" + (" or set sft.overlong=drop" if kept else "")
        )
    return kept, SftReport(num_kept=len(kept), dropped_rows=tuple(too_long), longest=longest)


def collate_sft(examples: Sequence[SftExample], pad_id: int, device: torch.device | str) -> Batch:
    """Make a batch of one row an example; mask_BT and loss_mask_BT are 1 on the response and its EOS. Scores are 0."""
    return collate(
        [example.prompt_ids for example in examples],
        examples,
        [0.0] * len(examples),
        pad_id=pad_id,
        truncated="penalize",
        overwrite_truncated_with_eos=None,
        device=device,
    )


def _ended(response_ids: tuple[int, ...], eos_id: int) -> tuple[int, ...]:
    return response_ids if response_ids[-1:] == (eos_id,) else (*response_ids, eos_id)


def _check_rows(path: str | Path, rows: Sequence[Row]) -> None:
    faults = [_fault(row) for row in rows]
    first = next(filter(None, faults), None)
    if first:
        found = [index for index, fault in enumerate(faults) if fault == first]
        raise ValueError(
            f"{path}: {name_rows(found)} {first}; write each row as "
            '{"question": ..., "response": ...} or {"prompt": ..., "response": ...}, or remove it'
        )


def _fault(row: Row) -> str | None:
    if ("question" in row) == ("prompt" in row):
        return 'without exactly one of "question" and "prompt"'
    for field in ("question" if "question" in row else "prompt", "response"):
        text = row.get(field)
        if not isinstance(text, str) or not text.strip():
            return f'without text in "{field}"'
    return None
