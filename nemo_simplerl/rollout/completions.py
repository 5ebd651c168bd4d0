"""Completions as flat arrays, for gathering them from other ranks and for writing them to disk."""

from collections.abc import Sequence

import numpy as np

from nemo_simplerl.rollout.base import Completion

_REASONS = ("length", "stop")


def encode_completions(completions: Sequence[Completion]) -> dict:
    """Completions as a few flat arrays, so that pickling them costs bytes and not Python objects. Exact."""
    return {
        "lengths": np.array([len(completion.token_ids) for completion in completions], dtype=np.int32),
        "token_ids": np.array([id_ for completion in completions for id_ in completion.token_ids], dtype=np.int32),
        "logprobs": np.array([p for completion in completions for p in completion.logprobs], dtype=np.float32),
        "texts": [completion.text for completion in completions],
        "stopped": np.array([_REASONS.index(completion.finish_reason) for completion in completions], dtype=np.int8),
        "versions": [completion.weight_version for completion in completions],
        "seeds": [completion.seed for completion in completions],
    }


def decode_completions(encoded: dict) -> list[Completion]:
    """The inverse of `encode_completions`."""
    ends = encoded["lengths"].cumsum().tolist()
    token_ids, logprobs = encoded["token_ids"].tolist(), encoded["logprobs"].tolist()
    return [
        Completion(
            token_ids=tuple(token_ids[end - length : end]),
            logprobs=tuple(logprobs[end - length : end]),
            text=text,
            finish_reason=_REASONS[stopped],
            weight_version=version,
            seed=seed,
        )
        for end, length, text, stopped, version, seed in zip(
            ends,
            encoded["lengths"].tolist(),
            encoded["texts"],
            encoded["stopped"].tolist(),
            encoded["versions"],
            encoded["seeds"],
            strict=True,
        )
    ]
