"""When a response ends: stop tokens, and stop strings found without decoding it again for every token.

Shapes: R responses, B of them still running, T tokens, V vocabulary ids.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Decoding from the middle of a text may spoil its start: part of a character, or a leading space taken off.
_SLACK_TOKENS = 4


class TextDecoder(Protocol):
    """The part of a tokenizer that is used; transformers' fast tokenizers and `tokenizers.Tokenizer` both have it."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str: ...


def tail_length(stop: Sequence[str]) -> int:
    """Number of tokens at the end of a response that hold any stop string: a token is at least one byte of UTF-8."""
    return max((len(text.encode()) for text in stop), default=0) + _SLACK_TOKENS


def may_complete(token_text: str, stop: Sequence[str]) -> bool:
    """Whether a token of this text can complete a stop string: it must bring the string's last character.

    True wherever a token alone does not show its text: part of a character decodes to U+FFFD, and some
    tokenizers take off the space that begins a text.
    """
    return "\ufffd" in token_text or any(text[-1] in token_text or text[-1].isspace() for text in stop)


def completes(tail_ids: list[int], stop: Sequence[str], decoder: TextDecoder) -> bool:
    """Whether the text of these tokens, special tokens included, holds a stop string."""
    text = decoder.decode(tail_ids, skip_special_tokens=False)
    return any(end in text for end in stop)


class StopRule:
    """The stops of one call. What an id of the vocabulary does to them is found out when it first occurs.

    Raises ValueError when a stop token is no id of the model, or stop strings come without a tokenizer.
    """

    _UNKNOWN, _GOES_ON, _MAY_COMPLETE, _STOPS = range(4)

    def __init__(
        self, stop: Sequence[str], stop_token_ids: Sequence[int], decoder: TextDecoder | None, vocab_size: int
    ):
        if stop and decoder is None:
            raise ValueError(f"stop strings {list(stop)} need a tokenizer: give the engine one, or use stop_token_ids.")
        if outside := [token for token in stop_token_ids if not 0 <= token < vocab_size]:
            raise ValueError(
                f"stop_token_ids {outside} are no ids of the model's vocabulary of {vocab_size}; "
                "the tokenizer belongs to another model."
            )
        self._stop = tuple(stop)
        self._decoder = decoder
        self._tail_length = tail_length(stop)
        self._kind_V = np.full(vocab_size, self._UNKNOWN if stop else self._GOES_ON, dtype=np.int8)
        self._kind_V[list(stop_token_ids)] = self._STOPS

    def stopped(self, tokens_RT: np.ndarray, rows_B: np.ndarray, last: int) -> np.ndarray:
        """Which of the running responses `rows_B` end with their token at position `last`: bool [B].

        tokens_RT holds responses without their prompts, valid up to and including `last`.
        """
        tokens_B = tokens_RT[rows_B, last]
        kind_B = self._kind_V[tokens_B]
        stopped_B = kind_B == self._STOPS
        if not self._stop:
            return stopped_B
        if (is_new_B := kind_B == self._UNKNOWN).any():
            self._learn(np.unique(tokens_B[is_new_B]).tolist())
            kind_B = self._kind_V[tokens_B]
        first = max(0, last + 1 - self._tail_length)
        for index in np.flatnonzero(kind_B == self._MAY_COMPLETE):
            tail_ids = tokens_RT[rows_B[index], first : last + 1].tolist()
            stopped_B[index] = completes(tail_ids, self._stop, self._decoder)
        return stopped_B

    def _learn(self, token_ids: list[int]) -> None:
        for token in token_ids:
            token_text = self._decoder.decode([token], skip_special_tokens=False)
            self._kind_V[token] = self._MAY_COMPLETE if may_complete(token_text, self._stop) else self._GOES_ON
