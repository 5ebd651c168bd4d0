"""One `generate` spread over the ranks of a group."""

from collections.abc import Sequence

import numpy as np
import torch.distributed as dist

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.rollout.base import Completion, RolloutEngine, SamplingParams, check_seeds

_REASONS = ("length", "stop")


def generate_sharded(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    group: dist.ProcessGroup | None,
) -> list[Completion]:
    """`engine.generate(prompts, params, seeds)`, each rank of `group` sampling its share; all answers on
    every rank.

    Collective: every rank calls with the same arguments and an engine of the same weights. None is this rank
    alone. Raises ValueError on a wrong number of seeds, RuntimeError on every rank when a rank's engine
    failed.
    """
    check_seeds(prompts, params, seeds)
    if group is None or group.size() == 1:
        return engine.generate(prompts, params, seeds)
    shares = deal([len(prompt) for prompt in prompts], group.size())
    mine = shares[group.rank()]
    error: Exception | None = None
    packed = None
    try:
        packed = pack(_generate_share(engine, prompts, params, seeds, mine))
    except Exception as caught:  # raised below on every rank: the others would wait for this one's answers forever
        error = caught
    answers = gather_objects((packed, None if error is None else repr(error)), group)
    if failures := [f"rank {rank}: {text}" for rank, (_, text) in enumerate(answers) if text is not None]:
        raise RuntimeError(f"generation failed on {'; '.join(failures)}") from error
    completions: list[Completion | None] = [None] * len(seeds)
    for share, (packed, _) in zip(shares, answers, strict=True):
        for sample, completion in zip(_samples(share, params.n), unpack(packed), strict=True):
            completions[sample] = completion
    return completions


def deal(prompt_lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Prompt indices of each rank: from the longest prompt down, one to each rank in turn."""
    by_length = sorted(range(len(prompt_lengths)), key=lambda index: -prompt_lengths[index])
    return [by_length[rank::num_ranks] for rank in range(num_ranks)]


def pack(completions: Sequence[Completion]) -> dict:
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


def unpack(packed: dict) -> list[Completion]:
    """The inverse of `pack`."""
    ends = packed["lengths"].cumsum().tolist()
    token_ids, logprobs = packed["token_ids"].tolist(), packed["logprobs"].tolist()
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
            packed["lengths"].tolist(),
            packed["texts"],
            packed["stopped"].tolist(),
            packed["versions"],
            packed["seeds"],
            strict=True,
        )
    ]


def _generate_share(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    share: list[int],
) -> list[Completion]:
    if not share:
        return []
    return engine.generate([prompts[index] for index in share], params, [seeds[i] for i in _samples(share, params.n)])


def _samples(share: list[int], n: int) -> list[int]:
    """Indices of all completions of these prompts, prompt-major."""
    return [index * n + copy for index in share for copy in range(n)]
