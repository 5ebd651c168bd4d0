"""Weight versions: which step made the weights that a sample or a step has, and how many refits lie between the two.

A version is the number of the step whose updates made the weights, 0 before any. The critic's warm-up updates no actor:
with W such steps the versions of a run are 0, W + 1, W + 2 and so on.
"""

import numpy as np


def version_after(step: int, warmup_steps: int) -> int:
    """The version of the actor's weights after `step` steps, of which the first `warmup_steps` train the critic."""
    return step if step > warmup_steps else 0


def lags(sampled_by: np.ndarray, step: int, warmup_steps: int) -> np.ndarray:
    """For each of these versions, the refits between it and the weights that `step` begins to train."""
    return max(step - 1, warmup_steps) - np.maximum(sampled_by, warmup_steps)
