"""The prompts of a step, the seeds of its samples and each rank's share, as functions of the run's position."""

import hashlib
import random
from collections.abc import Sequence


def require_enough(num_prompts: int, batch_size: int, max_rounds: int = 1) -> None:
    """Raise ValueError where not even one step can be filled, or a second round of it would find no other prompt."""
    found = f"a step takes {batch_size} prompts and there are {num_prompts}"
    if not 1 <= batch_size <= num_prompts:
        raise ValueError(f"{found}; set data.rollout_batch_size between 1 and {num_prompts}, or bring more problems")
    if max_rounds > 1 and batch_size == num_prompts:
        raise ValueError(
            f"{found}, so rollout.keep_groups=mixed has no other to take in place of one that it leaves out; set "
            f"data.rollout_batch_size below {num_prompts}, bring more problems, or set rollout.keep_groups=all"
        )


class StepSampler:
    """The prompts that steps take, in a new seeded order each episode (one pass over the prompts).

    A position counts the prompts that a run has passed, over all its episodes; a step is handed those that follow.
    max_rounds: how many batches a step may take. With 1, an episode ends when no full batch is left, as in the SimpleRL
    recipe: the prompts that remain are left out. With more, none are, and a step may reach into the next episode.
    Raises ValueError where not even one batch can be filled.
    """

    def __init__(self, num_prompts: int, batch_size: int, *, seed: int, shuffle: bool, max_rounds: int = 1):
        require_enough(num_prompts, batch_size, max_rounds)
        self.num_prompts, self.batch_size, self.seed, self.shuffle = num_prompts, batch_size, seed, shuffle
        self.max_rounds = max_rounds

    @property
    def steps_per_episode(self) -> int:
        """Steps of an episode of which each takes one batch."""
        return self.num_prompts // self.batch_size

    def position_of(self, step: int) -> int:
        """The position at which a step, counted from 0, begins where each takes one batch."""
        episode, step_in_episode = divmod(step, self.steps_per_episode)
        return episode * self.num_prompts + step_in_episode * self.batch_size

    def offered(self, position: int) -> dict[int, int]:
        """The prompts that the step at `position` may take, in order, each with the position after it.

        Distinct indices, the same on every rank and in every run: a prompt of the next episode that the step has met
        already is passed.
        """
        if self.max_rounds == 1 and position % self.num_prompts + self.batch_size > self.num_prompts:
            position += -position % self.num_prompts
        found: dict[int, int] = {}
        while True:
            episode, first = divmod(position, self.num_prompts)
            for index in self._order(episode)[first:]:
                position += 1
                found.setdefault(index, position)
                if len(found) == min(self.max_rounds * self.batch_size, self.num_prompts):
                    return found

    def leftover(self, total_steps: int) -> str | None:
        """A message where prompts are left over at the end of every episode of a run of `total_steps`; None else."""
        count = self.num_prompts % self.batch_size
        if count == 0 or total_steps < self.steps_per_episode or self.max_rounds > 1:
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


def rows_of(
    lengths: Sequence[int], step: int, seed: int, *, window: int, rank: int | None, num_ranks: int
) -> list[int]:
    """The samples of a step that data rank `rank` of `num_ranks` trains on, in the order of its batch.

    A share of each update, in a permutation seeded by run and step, so that the samples of one prompt spread over
    updates and update k has the same samples at every number of data ranks. lengths: response tokens of all samples of
    the step. window: samples of an update. A rank that trains on nothing (None) has no rows.
    """
    return [] if rank is None else all_rows(lengths, step, seed, window=window, num_ranks=num_ranks)[rank]


def all_rows(lengths: Sequence[int], step: int, seed: int, *, window: int, num_ranks: int) -> list[list[int]]:
    """`rows_of` every data rank."""
    # torch, which not all that imports this module needs.
    import torch

    generator = torch.Generator().manual_seed(sample_seed(seed, step, len(lengths), 0))
    order = torch.randperm(len(lengths), generator=generator).tolist()
    return even_shares(order, lengths, window=window, num_ranks=num_ranks)


def even_shares(order: Sequence[int], lengths: Sequence[int], *, window: int, num_ranks: int) -> list[list[int]]:
    """Each rank's share of `order`: of each `window` entries as many as any other rank, and of like lengths.

    Ranks choose in turn from the longest down, and every other time in the opposite direction: whatever a sequence
    costs by its length, the ranks differ by less than one sequence's cost. One rank takes all in their order. `window`
    must be a multiple of `num_ranks`.
    """
    if num_ranks == 1:
        return [list(order)]
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    for start in range(0, len(order), window):
        by_length = sorted(order[start : start + window], key=lambda entry: -lengths[entry])
        for turn, first in enumerate(range(0, len(by_length), num_ranks)):
            chosen = by_length[first : first + num_ranks]
            for share, entry in zip(shares, chosen if turn % 2 == 0 else chosen[::-1], strict=True):
                share.append(entry)
    return shares
