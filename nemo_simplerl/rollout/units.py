"""Units of work: prompts whose samples are computed together, chosen without a look at who computes them."""

from collections.abc import Sequence


def units(prompt_lengths: Sequence[int], n: int, max_samples: int) -> list[list[int]]:
    """Prompt indices of each unit, from the longest prompts down; units differ by one prompt at most.

    A unit has at most `max_samples` samples, n a prompt, or one prompt where n alone is more. The units of a unit's
    prompts are that unit.
    """
    by_length = sorted(range(len(prompt_lengths)), key=lambda index: -prompt_lengths[index])
    num_units = -(-len(by_length) // max(1, max_samples // n))
    bounds = [len(by_length) * unit // num_units for unit in range(num_units + 1)] if num_units else [0]
    return [by_length[first:end] for first, end in zip(bounds, bounds[1:], strict=False)]


def samples_of(prompts: Sequence[int], n: int) -> list[int]:
    """Indices of all samples of these prompts, prompt-major."""
    return [prompt * n + copy for prompt in prompts for copy in range(n)]
