"""One `generate` spread over the ranks of a group.

What is sampled does not depend on the ranks. A sample's draws come from its seed alone, and an engine that computes
samples together (`unit_size`) is handed whole units, chosen by a look at the prompts alone: whichever rank computes a
unit computes the same products of the same shapes. Token ids and log-probabilities are therefore the same to the bit on
any number of ranks and in any layout of the trainer, given the same weights, kind of machine and threads a rank.

The number of threads may change how a product rounds: between 1 and 2 of them, in units of 64, 1 of 1024 completions of
the quickstart had a log-probability with other last bits in float32, none in bfloat16, and no token differed. Without
units, 1 rank against 4, it would be 659 of 1024 in float32, and in bfloat16 600, of which 5 had other tokens. Of an
engine without units (None) nothing is promised.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.rollout.base import Completion, RolloutEngine, SamplingParams, check_seeds
from nemo_simplerl.rollout.units import samples_of, units

_REASONS = ("length", "stop")


class BrokenOff(Exception):
    """A rank was asked to stop before all was generated."""


def generate_sharded(
    engine: RolloutEngine | None,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    group: dist.ProcessGroup | None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Completion]:
    """`engine.generate(prompts, params, seeds)`, the ranks of `group` sharing the work; all answers on every rank.

    Collective: every rank calls with the same arguments and an engine of the same weights, or None where another rank's
    engine serves it too. group None is this rank alone. Raises ValueError on a wrong number of seeds, RuntimeError on
    every rank when a rank's engine failed. `should_stop` is asked before every unit; where it is true on any rank, no
    rank begins another and all raise BrokenOff. An engine without units is asked once.
    """
    check_seeds(prompts, params, seeds)
    if engine is not None and (group is None or group.size() == 1):
        return _generate_alone(engine, prompts, params, seeds, should_stop)
    shares, unit_size, key = _plan(engine, [len(prompt) for prompt in prompts], params.n, group)
    queue = _Queue(key, len(shares))
    done: dict[int, dict] = {}
    error: Exception | None = None
    try:
        # Ranks with short responses take more units. An engine without units gets one share, of one for each engine.
        for index in islice(queue, 1 if unit_size is None else None) if engine is not None else ():
            if should_stop():
                queue.stop()
                break
            seeds_of_share = [seeds[sample] for sample in samples_of(shares[index], params.n)]
            with waiting("engine.generate"):
                done[index] = pack(engine.generate([prompts[i] for i in shares[index]], params, seeds_of_share))
    except Exception as caught:  # raised below on every rank: the others would wait for this one's answers forever
        error = caught
        queue.stop()
    answers = gather_objects((done, None if error is None else repr(error)), group, "completions")
    if dist.get_rank(group) == 0:
        queue.forget()
    if failures := [f"rank {rank}: {text}" for rank, (_, text) in enumerate(answers) if text is not None]:
        raise RuntimeError(f"generation failed on {'; '.join(failures)}") from error
    if sum(len(packed_shares) for packed_shares, _ in answers) < len(shares):
        raise BrokenOff
    completions: list[Completion | None] = [None] * len(seeds)
    for packed_shares, _ in answers:
        for index, packed in packed_shares.items():
            for sample, completion in zip(samples_of(shares[index], params.n), unpack(packed), strict=True):
                completions[sample] = completion
    return completions


def _generate_alone(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    should_stop: Callable[[], bool],
) -> list[Completion]:
    """Unit by unit, as every number of ranks does it."""
    lengths = [len(prompt) for prompt in prompts]
    every = [list(range(len(prompts)))]
    completions: dict[int, Completion] = {}
    for share in every if engine.unit_size is None else units(lengths, params.n, engine.unit_size):
        if should_stop():
            raise BrokenOff
        samples = samples_of(share, params.n)
        with waiting("engine.generate"):
            made = engine.generate([prompts[i] for i in share], params, [seeds[sample] for sample in samples])
        completions |= dict(zip(samples, made, strict=True))
    return [completions[sample] for sample in range(len(seeds))]


class _Queue:
    """Numbers from 0 to `size` - 1, each taken by one rank. It lives in the store through which the ranks met."""

    def __init__(self, key: str, size: int):
        self._store, self._key, self._size = _get_default_store(), key, size

    def __iter__(self) -> Iterator[int]:
        while (taken := self._store.add(self._key, 1) - 1) < self._size:
            yield taken

    def stop(self) -> None:
        """Let no rank take another number."""
        self._store.add(self._key, self._size)

    def forget(self) -> None:
        """Free what the store holds, once every rank is done."""
        self._store.delete_key(self._key)


def _plan(
    engine: RolloutEngine | None, prompt_lengths: Sequence[int], n: int, group: dist.ProcessGroup | None
) -> tuple[list[list[int]], int | None, str]:
    """Prompts of each share, most work first; the engines' unit_size; a new key of the store. Collective.

    Raises RuntimeError on every rank when no rank has an engine or their units differ.
    """
    mine = None if engine is None else {"unit_size": engine.unit_size}
    roster = gather_objects((mine, uuid.uuid4().hex), group)
    sizes = [theirs["unit_size"] for theirs, _ in roster if theirs is not None]
    if not sizes:
        raise RuntimeError("no rank of the group has a rollout engine.")
    if len(set(sizes)) > 1:
        raise RuntimeError(f"the rollout engines of a group need one unit_size, found {sizes}.")
    unit_size = sizes[0]
    shares = deal(prompt_lengths, len(sizes)) if unit_size is None else units(prompt_lengths, n, unit_size)
    return [share for share in shares if share], unit_size, f"simplerl/rollout/{roster[0][1]}"


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
