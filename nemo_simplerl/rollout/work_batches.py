"""Work batches: prompts whose samples are computed together, chosen without a look at the rank that computes them."""

from collections.abc import Sequence


def work_batches(prompt_lengths: Sequence[int], n: int, max_samples: int) -> list[list[int]]:
    """Prompt indices of each batch, from the longest prompts down; batches differ by one prompt at most.

    A batch has at most `max_samples` samples, n a prompt, or one prompt where n alone is more. Splitting one batch
    again returns it unchanged, so the trainer and the engine can both call this and agree.
    """
    by_length = sorted(range(len(prompt_lengths)), key=lambda index: -prompt_lengths[index])
    num_batches = -(-len(by_length) // max(1, max_samples // n))
    bounds = [len(by_length) * batch // num_batches for batch in range(num_batches + 1)] if num_batches else [0]
    return [by_length[first:end] for first, end in zip(bounds, bounds[1:], strict=False)]


def sample_indices(prompts: Sequence[int], n: int) -> list[int]:
    """Indices of all samples of the prompts with these indices, prompt-major: n a prompt."""
    return [prompt * n + copy for prompt in prompts for copy in range(n)]
