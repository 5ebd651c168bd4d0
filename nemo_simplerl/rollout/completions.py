"""Completions as flat arrays: the numbers of an engine's answer never become Python objects on their way to a batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.stopping import TextDecoder

FINISH_REASONS = ("length", "stop")  # by whether a completion was stopped


@dataclass(frozen=True, eq=False)
class Completions(Sequence[Completion]):
    """Completions in columns. Item i is completion i as Python values, made when it is asked for.

    `token_ids` and `logprobs` hold a view for each completion, of the flat array that the engine's answer came in: what
    is chosen from completions, or joined to others, copies no token.
    """

    token_ids: list[np.ndarray]  # int32 each
    logprobs: list[np.ndarray]  # float32 each
    texts: list[str]
    is_stopped: np.ndarray  # bool [N]; False: ended by length
    versions: np.ndarray  # int64 [N], of the weights that sampled each
    seeds: np.ndarray  # int64 [N], see seeds_of

    @classmethod
    def from_flat(
        cls,
        token_ids: np.ndarray,
        logprobs: np.ndarray,
        lengths: np.ndarray,
        *,
        texts: list[str],
        is_stopped: np.ndarray,
        versions: np.ndarray,
        seeds: np.ndarray,
    ) -> "Completions":
        """Completions from the tokens of all of them, one behind the other: `lengths` belong to each."""
        return cls(
            rows_of_flat(np.asarray(token_ids, dtype=np.int32), lengths),
            rows_of_flat(np.asarray(logprobs, dtype=np.float32), lengths),
            texts,
            np.asarray(is_stopped, dtype=bool),
            np.asarray(versions, dtype=np.int64),
            np.asarray(seeds, dtype=np.int64),
        )

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> "Completions":
        """Completions in columns, whatever they came in."""
        if isinstance(completions, Completions):
            return completions
        return cls(
            [np.array(completion.token_ids, dtype=np.int32) for completion in completions],
            [np.array(completion.logprobs, dtype=np.float32) for completion in completions],
            [completion.text for completion in completions],
            np.array([completion.finish_reason == "stop" for completion in completions], dtype=bool),
            np.array([completion.weight_version for completion in completions], dtype=np.int64),
            seeds_of([completion.seed for completion in completions]),
        )

    @classmethod
    def joined(cls, parts: Iterable["Completions"]) -> "Completions":
        """All completions of the parts, in order."""
        listed = [cls.of([]), *parts]
        return cls(
            *([row for part in listed for row in getattr(part, name)] for name in ("token_ids", "logprobs", "texts")),
            *(np.concatenate([getattr(part, name) for part in listed]) for name in ("is_stopped", "versions", "seeds")),
        )

    def select(self, indices: Sequence[int] | np.ndarray) -> "Completions":
        """The completions with these indices, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        lists = ([rows[i] for i in index.tolist()] for rows in (self.token_ids, self.logprobs, self.texts))
        return Completions(*lists, self.is_stopped[index], self.versions[index], self.seeds[index])

    def with_texts(self, tokenizer: TextDecoder | None) -> "Completions":
        """These completions with their texts, special tokens left out; without a tokenizer, as they are."""
        if tokenizer is None:
            return self
        texts = [tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in self.token_ids]
        return replace(self, texts=texts)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each completion."""
        return np.array([len(row) for row in self.token_ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> Completion: ...
    @overload
    def __getitem__(self, index: slice) -> list[Completion]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Completion(
            tuple(self.token_ids[index].tolist()),
            tuple(self.logprobs[index].tolist()),
            self.texts[index],
            FINISH_REASONS[int(self.is_stopped[index])],
            int(self.versions[index]),
            int(self.seeds[index]),
        )

    def __iter__(self) -> Iterator[Completion]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Completion.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


def seeds_of(seeds: Sequence[int]) -> np.ndarray:
    """int64 [N]: the seeds of samples modulo 2**64, above 2**63 as negative numbers. Any integer is a seed."""
    return np.array([seed % 2**64 for seed in seeds], dtype=np.uint64).astype(np.int64)


def rows_of_flat(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Views of the parts of a flat array that have these lengths, one behind the other."""
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def flat_of_rows(rows: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """The rows one behind the other, in one array."""
    return np.concatenate([np.empty(0, dtype), *rows])


def encode_text(text: str) -> bytes:
    """UTF-8, in which a lone surrogate survives too."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(encoded: bytes) -> str:
    """The inverse of `encode_text`."""
    return encoded.decode("utf-8", "surrogatepass")
