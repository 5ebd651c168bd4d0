"""What an engine answered, as completions by the rules of all engines."""

from collections.abc import Sequence

import numpy as np

from nemo_simplerl.rollout.completions import Completions, seeds_of
from nemo_simplerl.rollout.stopping import StopRule, TextDecoder


def completions_of(
    answers: Sequence[tuple[Sequence[int], Sequence[float]]],
    seeds: Sequence[int],
    stop_rule: StopRule,
    tokenizer: TextDecoder | None,
    version: int,
) -> Completions:
    """The completions of answers, tokens with their log-probabilities, each cut after its first stop.

    seeds: one for each answer. version: of the weights that gave them. Without a tokenizer completions have no text.
    """
    lengths, stopped = cut_at_stops([tokens for tokens, _ in answers], stop_rule)
    completions = Completions(
        [np.array(tokens[:length], dtype=np.int32) for (tokens, _), length in zip(answers, lengths, strict=True)],
        [np.array(logprobs[:length], dtype=np.float32) for (_, logprobs), length in zip(answers, lengths, strict=True)],
        [""] * len(answers),
        np.array(stopped, dtype=bool),
        np.full(len(answers), version, dtype=np.int64),
        seeds_of(seeds),
    )
    return completions.with_texts(tokenizer)


def cut_at_stops(responses: Sequence[Sequence[int]], stop_rule: StopRule) -> tuple[list[int], list[bool]]:
    """Length of each response up to and including the token of its first stop, and whether there is one."""
    lengths = np.array([len(ids) for ids in responses])
    tokens_RT = np.zeros((len(responses), int(lengths.max(initial=0))), dtype=np.int64)
    for row, ids in enumerate(responses):
        tokens_RT[row, : len(ids)] = ids
    stopped = np.zeros(len(responses), dtype=bool)
    for step in range(tokens_RT.shape[1]):
        rows_B = np.flatnonzero((lengths > step) & ~stopped)
        ended_B = rows_B[stop_rule.stopped(tokens_RT, rows_B, step)]
        lengths[ended_B], stopped[ended_B] = step + 1, True
    return lengths.tolist(), stopped.tolist()
