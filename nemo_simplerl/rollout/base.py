"""The interface of a rollout engine, and the values that pass between it and the trainer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

# Some of the weights: Hugging Face names and full tensors, on the trainer's device.
Bucket: TypeAlias = "list[tuple[str, Tensor]]"


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of one `generate` call, for every prompt. Raises ValueError on a value outside its range."""

    n: int  # completions a prompt
    max_tokens: int  # bound on the new tokens of one completion
    temperature: float  # 0.0 is greedy: the first id of the highest logit
    top_p: float  # smallest set of tokens whose probability reaches this; 1.0 keeps all
    top_k: int  # this many most probable tokens; 0 keeps all
    stop: tuple[str, ...]  # texts that end a completion with the token that completes one; kept in it
    stop_token_ids: tuple[int, ...]  # tokens that end a completion; kept in it

    def __post_init__(self) -> None:
        for is_valid, rule in (
            (self.n >= 1, f"n must be at least 1, got {self.n}"),
            (self.max_tokens >= 1, f"max_tokens must be at least 1, got {self.max_tokens}"),
            (self.temperature >= 0, f"temperature must be 0 (greedy) or more, got {self.temperature}"),
            (0 < self.top_p <= 1, f"top_p must lie in (0, 1] where 1 keeps every token, got {self.top_p}"),
            (self.top_k >= 0, f"top_k must be 0 (keeps every token) or more, got {self.top_k}"),
            (all(self.stop), f"stop strings must not be empty, got {self.stop}"),
        ):
            if not is_valid:
                raise ValueError(f"SamplingParams: {rule}.")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response."""

    token_ids: tuple[int, ...]  # the stop token, or the tokens of the stop string, are kept
    # Nats, one a token: float32 log-softmax(logits / temperature) over the full vocabulary, whatever top_k
    # and top_p left out of the draw; of the raw logits at temperature 0.
    logprobs: tuple[float, ...]
    text: str  # decoded, special tokens left out
    finish_reason: Literal["stop", "length"]  # "stop" also where the stop is the last allowed token
    weight_version: int  # `version` of the refit whose weights sampled it
    seed: int


class RolloutEngine(Protocol):
    """A sampler of completions whose weights are replaced every step.

    The order of calls is refit, generate (any number of times), and again; between them `sleep` may hand the
    accelerator's memory to the trainer until `wake`. A new or woken engine may hold no usable weights:
    `generate` then raises RuntimeError until a `refit` has succeeded. One engine serves one rank, or one
    group of ranks that call it with the same arguments.
    """

    # Samples that are computed together, and round differently when computed beside others: work is handed out in
    # batches of as many. None: the engine schedules its samples itself, and works best on its whole share in one call.
    batch_size: int | None
    # Whether `generate` is called on this rank: of a group that shares one engine, only the first rank calls it.
    generates: bool
    # Whether the trainer calls `sleep` after every rollout, so that its updates have the engine's memory too.
    sleeps_between_rollouts: bool

    @property
    def weight_version(self) -> int | None:
        """Version of the weights that `generate` samples from; None where only a refit makes it sample."""

    def refit(self, buckets: Iterable[Bucket], version: int, *, digests: bool = False) -> dict[str, int]:
        """Replace every weight by the tensor of its Hugging Face name.

        With `digests`, returns `rollout.digest.digest` of what landed in the engine, by name; else an empty dict.
        All buckets are consumed, even on an error: they may come from a collective that other ranks are in. The sender
        may reuse a bucket's tensors as soon as the next one is asked for.
        Raises ValueError naming unknown, missing, duplicate or misshapen tensors, and RuntimeError while another refit
        runs, which is void too; the engine then refuses to generate. Raises RuntimeError while asleep.
        """

    def invalidate(self, reason: str) -> None:
        """Refuse to generate, giving this reason, until a refit succeeds. Voids a refit that is running."""

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> Sequence[Completion]:
        """Sample `params.n` completions of each prompt, prompt-major: all of prompt 0, then all of prompt 1.

        They are best returned as flat arrays (`rollout.completions.Completions`); a list costs Python objects a token.

        `seeds` holds one integer a completion in the same order. An engine that draws from per-sample streams
        (`hf`) gives a completion that depends on its prompt, params, seed and weights alone, not on its
        neighbours. Raises ValueError on an empty prompt, a prompt that leaves no room for max_tokens, or a
        wrong number of seeds.
        """

    def sleep(self) -> None:
        """Release accelerator memory. Harmless when already asleep."""

    def wake(self) -> None:
        """Undo `sleep`. Harmless when awake."""

    def close(self) -> None:
        """Release everything for good. Harmless when closed."""


def check_seeds(prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]) -> None:
    """Raise ValueError unless there is one seed a completion."""
    expected = len(prompts) * params.n
    if len(seeds) != expected:
        raise ValueError(f"{len(prompts)} prompts with n={params.n} need {expected} seeds, got {len(seeds)}.")


def check_request(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    vocab_size: int,
    max_model_len: int,
) -> None:
    """Raise ValueError where `RolloutEngine.generate` does, for an engine with these limits."""
    check_seeds(prompts, params, seeds)
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty; a prompt needs at least one token.")
        if len(prompt) + params.max_tokens > max_model_len:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens and max_tokens is {params.max_tokens}: "
                f"together more than max_model_len={max_model_len}. Shorten the prompt or lower max_tokens."
            )
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise ValueError(
                f"prompt {index} holds ids {min(prompt)} to {max(prompt)}, but the model's vocabulary is "
                f"{vocab_size}; the tokenizer belongs to another model."
            )
