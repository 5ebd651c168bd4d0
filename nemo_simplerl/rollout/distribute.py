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
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.rollout.base import Completion, RolloutEngine, SamplingParams, check_seeds
from nemo_simplerl.rollout.completions import decode_completions, encode_completions
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
) -> list[Completion]:
    """All completions of `engine.generate(prompts, params, seeds)` on every rank; the ranks of `group` share the work.

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
    done: dict[int, dict] = {}
    error: Exception | None = None
    try:
        # Ranks with short responses take more batches. Without a batch size there is one share for each engine.
        for index in islice(queue, 1 if batch_size is None else None) if engine is not None else ():
            if should_stop():
                queue.stop()
                break
            seeds_of_share = [seeds[sample] for sample in sample_indices(shares[index], params.n)]
            with waiting("engine.generate"):
                completions = engine.generate([prompts[i] for i in shares[index]], params, seeds_of_share)
                done[index] = encode_completions(completions)
    except Exception as caught:  # raised below on every rank: the others would wait for this one's answers forever
        error = caught
        queue.stop()
    answers = gather_objects((done, None if error is None else repr(error)), group, "completions")
    if dist.get_rank(group) == 0:
        queue.forget()
    if failures := [f"rank {rank}: {text}" for rank, (_, text) in enumerate(answers) if text is not None]:
        raise RuntimeError(f"generation failed on {'; '.join(failures)}") from error
    if sum(len(encoded_shares) for encoded_shares, _ in answers) < len(shares):
        raise BrokenOff
    by_sample: dict[int, Completion] = {}
    for encoded_shares, _ in answers:
        for index, encoded in encoded_shares.items():
            by_sample |= zip(sample_indices(shares[index], params.n), decode_completions(encoded), strict=True)
    return [by_sample[sample] for sample in range(len(seeds))]


def _generate_alone(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    should_stop: Callable[[], bool],
) -> list[Completion]:
    """`generate_sharded` on one rank: the same work batches, one after the other."""
    lengths = [len(prompt) for prompt in prompts]
    everything = [list(range(len(prompts)))]
    by_sample: dict[int, Completion] = {}
    for share in everything if engine.batch_size is None else work_batches(lengths, params.n, engine.batch_size):
        if should_stop():
            raise BrokenOff
        samples = sample_indices(share, params.n)
        with waiting("engine.generate"):
            completions = engine.generate([prompts[i] for i in share], params, [seeds[sample] for sample in samples])
        by_sample |= zip(samples, completions, strict=True)
    return [by_sample[sample] for sample in range(len(seeds))]


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
