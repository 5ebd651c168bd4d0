"""The prompts of a step, the seeds of its samples and each rank's share, as functions of the step alone."""

import hashlib
import random
from collections.abc import Sequence


class StepSampler:
    """Batches of prompt indices, in a new seeded order each episode (one pass over the prompts).

    An episode ends when no full batch is left, as in the SimpleRL recipe: the prompts that remain are left out.
    Raises ValueError where not even one batch can be filled.
    """

    def __init__(self, num_prompts: int, batch_size: int, *, seed: int, shuffle: bool):
        if not 1 <= batch_size <= num_prompts:
            raise ValueError(
                f"a step takes {batch_size} prompts and there are {num_prompts}; "
                f"set data.rollout_batch_size between 1 and {num_prompts}, or bring more problems"
            )
        self.num_prompts, self.batch_size, self.seed, self.shuffle = num_prompts, batch_size, seed, shuffle

    @property
    def steps_per_episode(self) -> int:
        return self.num_prompts // self.batch_size

    def episode(self, step: int) -> int:
        """The pass that the step (counted from 0) belongs to, from 0."""
        return step // self.steps_per_episode

    def indices(self, step: int) -> list[int]:
        """The `batch_size` distinct prompts of a step, the same on every rank and in every run."""
        start = step % self.steps_per_episode * self.batch_size
        return self._order(self.episode(step))[start : start + self.batch_size]

    def leftover(self, total_steps: int) -> str | None:
        """A message where prompts are left over at the end of every episode of a run of `total_steps`; None else."""
        count = self.num_prompts % self.batch_size
        if count == 0 or total_steps < self.steps_per_episode:
            return None
        is_once = not self.shuffle or total_steps < 2 * self.steps_per_episode
        fate = "they are never trained on" if is_once else "other ones each time"
        return (
            f"{count} of {self.num_prompts} prompts are left over in every episode, too few for a step of "
            f"{self.batch_size}: {fate}; a data.rollout_batch_size that divides {self.num_prompts} leaves none"
        )

    def _order(self, episode: int) -> list[int]:
        order = list(range(self.num_prompts))
        if self.shuffle:
            # Text is hashed with SHA-512: neighbouring seeds and episodes give unrelated orders everywhere.
            random.Random(f"{self.seed}/{episode}").shuffle(order)
        return order


def sample_seed(run_seed: int, step: int, problem_index: int, sample_index: int) -> int:
    """A 63-bit seed for one response, unrelated to its neighbours' and the same wherever it is computed."""
    name = f"{run_seed}/{step}/{problem_index}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def even_share(order: Sequence[int], lengths: Sequence[int], *, window: int, rank: int, num_ranks: int) -> list[int]:
    """One rank's share of `order`: of each `window` entries as many as any other rank, and of like lengths.

    Ranks choose in turn from the longest down, and every other time in the opposite direction: whatever a sequence
    costs by its length, the ranks differ by less than one sequence's cost. One rank takes all in their order. `window`
    must be a multiple of `num_ranks`.
    """
    if num_ranks == 1:
        return list(order)
    share = []
    for start in range(0, len(order), window):
        by_length = sorted(order[start : start + window], key=lambda entry: -lengths[entry])
        for turn, first in enumerate(range(0, len(by_length), num_ranks)):
            share.append(by_length[first + (rank if turn % 2 == 0 else num_ranks - 1 - rank)])
    return share
