"""One `generate` spread over the ranks of a group.

What is sampled does not depend on the ranks. A sample's draws come from its seed alone, and an engine that computes
samples together (`batch_size`) is handed whole work batches, chosen by a look at the prompts alone: whichever rank
computes a batch computes the same products of the same shapes. Token ids and log-probabilities are therefore the same
to the bit on any number of ranks and in any layout of the trainer, given the same weights, kind of machine and threads
a rank.

The number of threads may change how a product rounds: between 1 and 2 of them, in batches of 64, 1 of 1024 completions
of the quickstart had a log-probability with other last bits in float32, none in bfloat16, and no token differed.
Without work batches, 1 rank against 4, it would be 659 of 1024 in float32, and in bfloat16 600, of which 5 had other
tokens. For an engine without a batch size (None) nothing is promised.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams, check_seeds
from nemo_simplerl.rollout.completions import Completions, seeds_of
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.rollout.work_batches import sample_indices, work_batches


class BrokenOff(Exception):
    """Raised on every rank when one of them was asked to stop before all completions were generated."""


def generate_sharded(
    engine: RolloutEngine | None,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    group: dist.ProcessGroup | None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SpreadCompletions:
    """All completions of `engine.generate(prompts, params, seeds)`; the ranks of `group` share the work, and each keeps
    the tokens and texts that it sampled.

    Collective: every rank calls with the same arguments and an engine of the same weights, or None where another rank's
    engine serves it too. group None is this rank alone. Raises ValueError on a wrong number of seeds, RuntimeError on
    every rank when a rank's engine failed. `should_stop` is asked before every work batch; where it is true on any
    rank, no rank begins another and all raise BrokenOff. An engine without a batch size is called once.
    """
    check_seeds(prompts, params, seeds)
    if engine is not None and (group is None or group.size() == 1):
        return _generate_alone(engine, prompts, params, seeds, should_stop)
    shares, batch_size, key = _plan(engine, [len(prompt) for prompt in prompts], params.n, group)
    queue = _Queue(key, len(shares))
    done: dict[int, Completions] = {}
    error: Exception | None = None
    try:
        # Ranks with short responses take more batches. Without a batch size there is one share for each engine.
        for index in islice(queue, 1 if batch_size is None else None) if engine is not None else ():
            if should_stop():
                queue.stop()
                break
            done[index] = _share(engine, prompts, params, seeds, shares[index])
    except Exception as caught:  # raised below on every rank: the others would wait for this one's answers forever
        error = caught
        queue.stop()
    facts = {index: (part.lengths, part.is_stopped, part.versions) for index, part in done.items()}
    answers = gather_objects((facts, None if error is None else repr(error)), group, "completions")
    if dist.get_rank(group) == 0:
        queue.forget()
    if failures := [f"rank {rank}: {text}" for rank, (_, text) in enumerate(answers) if text is not None]:
        raise RuntimeError(f"generation failed on {'; '.join(failures)}") from error
    if sum(len(facts_of_shares) for facts_of_shares, _ in answers) < len(shares):
        raise BrokenOff
    return _spread([facts_of_shares for facts_of_shares, _ in answers], done, shares, params.n, seeds, group)


def _spread(
    facts: Sequence[Mapping[int, tuple[np.ndarray, ...]]],
    done: Mapping[int, Completions],
    shares: Sequence[Sequence[int]],
    n: int,
    seeds: Sequence[int],
    group: dist.ProcessGroup | None,
) -> SpreadCompletions:
    """The whole rollout, of the facts of each rank's shares and the completions of those that this rank has `done`."""
    lengths, versions, holders = (np.zeros(len(seeds), dtype=np.int64) for _ in range(3))
    is_stopped = np.zeros(len(seeds), dtype=bool)
    for rank, of_shares in enumerate(facts):
        for index, (lengths_of_share, stopped_of_share, versions_of_share) in of_shares.items():
            samples = sample_indices(shares[index], n)
            lengths[samples], is_stopped[samples] = lengths_of_share, stopped_of_share
            versions[samples], holders[samples] = versions_of_share, rank
    held = Completions.joined(done.values())
    samples_held = [sample for index in done for sample in sample_indices(shares[index], n)]
    held = held.select(np.argsort(np.array(samples_held, dtype=np.int64)))
    rank = 0 if group is None else group.rank()
    return SpreadCompletions(lengths, is_stopped, versions, seeds_of(seeds), holders, rank, held)


def _generate_alone(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    should_stop: Callable[[], bool],
) -> SpreadCompletions:
    """`generate_sharded` on one rank: the same work batches, one after the other."""
    lengths = [len(prompt) for prompt in prompts]
    everything = [list(range(len(prompts)))]
    samples: list[int] = []
    parts: list[Completions] = []
    for share in everything if engine.batch_size is None else work_batches(lengths, params.n, engine.batch_size):
        if should_stop():
            raise BrokenOff
        samples += sample_indices(share, params.n)
        parts.append(_share(engine, prompts, params, seeds, share))
    return SpreadCompletions.alone(Completions.joined(parts).select(np.argsort(np.array(samples, dtype=np.int64))))


def _share(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    share: Sequence[int],
) -> Completions:
    """The completions of the prompts with these indices."""
    samples = sample_indices(share, params.n)
    with waiting("engine.generate"):
        completions = engine.generate([prompts[i] for i in share], params, [seeds[sample] for sample in samples])
    found = Completions.of(completions)
    assert len(found) == len(samples), f"the engine answered {len(found)} completions of {len(samples)}"
    return found


class _Queue:
    """Numbers from 0 to `size` - 1, each taken by one rank: a counter in the key-value store of torch.distributed."""

    def __init__(self, key: str, size: int):
        self._store, self._key, self._size = _get_default_store(), key, size

    def __iter__(self) -> Iterator[int]:
        while (taken := self._store.add(self._key, 1) - 1) < self._size:
            yield taken

    def stop(self) -> None:
        """Let no rank take another number."""
        self._store.add(self._key, self._size)

    def forget(self) -> None:
        """Delete the counter, once every rank is done."""
        self._store.delete_key(self._key)


def _plan(
    engine: RolloutEngine | None, prompt_lengths: Sequence[int], n: int, group: dist.ProcessGroup | None
) -> tuple[list[list[int]], int | None, str]:
    """Prompts of each share, most work first; the engines' batch_size; a new key of the store. Collective.

    Raises RuntimeError on every rank when no rank has an engine or their batch sizes differ.
    """
    mine = None if engine is None else {"batch_size": engine.batch_size}
    roster = gather_objects((mine, uuid.uuid4().hex), group)
    sizes = [theirs["batch_size"] for theirs, _ in roster if theirs is not None]
    if not sizes:
        raise RuntimeError("no rank of the group has a rollout engine.")
    if len(set(sizes)) > 1:
        raise RuntimeError(f"the rollout engines of a group need one batch_size, found {sizes}.")
    batch_size = sizes[0]
    shares = deal(prompt_lengths, len(sizes)) if batch_size is None else work_batches(prompt_lengths, n, batch_size)
    return [share for share in shares if share], batch_size, f"simplerl/rollout/{roster[0][1]}"


def deal(prompt_lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Prompt indices of each rank: from the longest prompt down, one to each rank in turn. Some may be empty."""
    by_length = sorted(range(len(prompt_lengths)), key=lambda index: -prompt_lengths[index])
    return [by_length[rank::num_ranks] for rank in range(num_ranks)]
