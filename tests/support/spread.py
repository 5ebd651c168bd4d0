"""Completions that are spread over ranks, put together again for a look at them."""

from collections.abc import Sequence
from dataclasses import replace

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import SpreadCompletions


def held_by_first(completions: Sequence[Completion], rank: int) -> SpreadCompletions:
    """Completions that every rank has sampled alike, as if the first had alone."""
    alone = SpreadCompletions.alone(Completions.of(completions))
    return alone if rank == 0 else replace(alone, rank=rank, held=Completions.of([]))


def whole(spread: SpreadCompletions, group) -> list[Completion]:
    """All completions on every rank, after a look at whether what all ranks know of each is true. Collective."""
    held = gather_objects([spread.held[i] for i in range(len(spread.held))], group)
    shares = [iter(share) for share in held]
    completions = [next(shares[holder]) for holder in spread.holders.tolist()]
    assert [len(one.token_ids) for one in completions] == spread.lengths.tolist()
    assert [one.finish_reason == "stop" for one in completions] == spread.is_stopped.tolist()
    assert [one.weight_version for one in completions] == spread.versions.tolist()
    assert [one.seed for one in completions] == spread.seeds.tolist()
    return completions
