"""Terms that are added to the reward of a verdict, each with a name of its own in metrics and samples."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a reward worker starts without building the whole configuration
    from nemo_simplerl.config.schema import RewardConfig


def overlong_term(num_tokens: int, *, max_tokens: int, buffer_tokens: int, penalty: float) -> float:
    """What a response of `num_tokens` loses for its length (DAPO, arXiv:2503.14476, equation 13).

    0 up to `max_tokens` - `buffer_tokens`; from there a straight line to -penalty at `max_tokens`, where it is cut.
    """
    exceeding = num_tokens - (max_tokens - buffer_tokens)
    return -penalty * min(exceeding / buffer_tokens, 1.0) if exceeding > 0 else 0.0


def terms_of(num_tokens: int, max_tokens: int, config: "RewardConfig") -> dict[str, float]:
    """The terms of a response's reward beside its verdict's, by name; none where none is configured."""
    buffer, penalty = config.overlong_buffer_tokens, config.overlong_penalty
    if buffer is None:
        return {}
    return {"overlong": overlong_term(num_tokens, max_tokens=max_tokens, buffer_tokens=buffer, penalty=penalty)}
