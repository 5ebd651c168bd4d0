"""Demonstrations for the warm start: prompts with the response to imitate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.data.chats import Chat, is_chat, read_chat
from nemo_simplerl.data.rows import Row, name_rows, read_rows
from nemo_simplerl.data.templates import WorkedExample, encode_prompts, joined, renderer, response_lead_in


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
    worked: Sequence[WorkedExample] = (),
) -> tuple[list[SftExample], SftReport]:
    """Read and tokenize the rows of a file.

    A row has a `response` (or `completion`) to a `question`, which goes through the template behind the `worked`
    examples, or to a `prompt`, which is used as it stands; or it has `messages`, of which the last is the response. A
    prompt or completion may be messages too. An EOS ends every response; a space goes before it where the template ends
    in "Answer:". Prompt and response are tokenized apart, as in a rollout, and a prompt
    begins with a BOS where the tokenizer itself puts one. Raises ValueError for rows of another form, for a row above
    `max_tokens` (prompt, response and EOS) under "error", and when none is left.
    """
    prompt_of = renderer(template, tokenizer, trailing_newline=trailing_newline, examples=worked)
    texts = _texts_of(path, read_rows(path), prompt_of, response_lead_in(template))
    prompt_ids = encode_prompts(tokenizer, [prompt for prompt, _ in texts])
    response_ids = tokenizer([response for _, response in texts], add_special_tokens=False)["input_ids"]
    examples = [
        SftExample(tuple(prompt), _ended(tuple(response), tokenizer.eos_token_id))
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]
    too_long = [index for index, example in enumerate(examples) if len(example) > max_tokens]
    kept = [example for example in examples if len(example) <= max_tokens]
    longest = max(map(len, examples))
    if too_long and (overlong == "error" or not kept):
        raise ValueError(
            f"{path}: {name_rows(too_long)} of {len(examples)} have more than {max_tokens} tokens, "
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


def _texts_of(
    path: str | Path, rows: Sequence[Row], prompt_of: Callable[[str | Chat], str], lead_in: str
) -> list[tuple[str, str]]:
    """Prompt and response of every row. Raises ValueError that counts the rows with the first fault."""
    texts: list[tuple[str, str]] = []
    faults: dict[int, str] = {}
    for index, row in enumerate(rows):
        try:
            texts.append(_text_of(row, prompt_of, lead_in))
        except ValueError as error:
            faults[index] = str(error)
    if faults:
        first = next(iter(faults.values()))
        found = [index for index, fault in faults.items() if fault == first]
        raise ValueError(
            f"{path}: {name_rows(found)} {first}; write each row as "
            '{"question": ..., "response": ...}, {"prompt": ..., "response": ...} or {"messages": [...]}, or remove it'
        )
    return texts


def _text_of(row: Row, prompt_of: Callable[[str | Chat], str], lead_in: str) -> tuple[str, str]:
    asked = [name for name in ("question", "prompt", "messages") if name in row]
    if "messages" in asked and not row.keys() & {"response", "completion"}:
        asked = ["messages"]  # it holds the response too, whatever else the row names
    if len(asked) != 1:
        raise ValueError('without exactly one of "question", "prompt" and "messages"')
    (field,) = asked
    if field == "messages":
        *before, last = _chat(row, field)
        if last.role != "assistant" or not before:
            raise ValueError('whose "messages" do not end in the answer of the assistant')
        return prompt_of(tuple(before)), joined(lead_in, _filled(last.content, field))
    response = "completion" if "completion" in row and "response" not in row else "response"
    if is_chat(row.get(response)):
        (answer,) = _chat(row, response)[-1:]
        said = _filled(answer.content, response)
    else:
        said = _filled(row.get(response), response)
    if is_chat(row[field]):
        return prompt_of(_chat(row, field)), joined(lead_in, said)
    text = _filled(row[field], field)
    return (text, said) if field == "prompt" else (prompt_of(text), joined(lead_in, said))


def _chat(row: Row, field: str) -> Chat:
    if not is_chat(row[field]):
        raise ValueError(f'without a list of {{"role": ..., "content": ...}} in "{field}"')
    return read_chat(row[field])


def _filled(text: Any, field: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'without text in "{field}"')
    return text
