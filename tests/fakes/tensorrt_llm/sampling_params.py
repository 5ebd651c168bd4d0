from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None  # a float32 tensor of the vocabulary's size
    _stop_word_ids: list[list[int]] | None = field(default=None, init=False, repr=False)
    n: int = 1
    best_of: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self):
        self.best_of = self.best_of or self.n
        if self.best_of > 1:
            raise NotImplementedError("the double: samples that share one request share its seed")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise TypeError(f"seed {self.seed} does not fit an unsigned 64-bit integer")

    @property
    def is_greedy(self) -> bool:
        unset = self.temperature is None and self.top_p is None and self.top_k is None
        return unset or self.top_k == 1 or self.top_p == 0.0 or self.temperature == 0.0

    def check_stop_words(self) -> None:
        if self.stop is not None and self._stop_word_ids is None:
            raise RuntimeError(
                f"{type(self).__name__}.stop ({self.stop}) is not processed by tokenizer, please call the setup method."
            )
