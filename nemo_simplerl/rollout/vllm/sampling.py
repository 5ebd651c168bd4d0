"""Log-probabilities of the full vocabulary from vLLM's sampler, and ids that it never draws. Does not import it.

Shapes: N requests of one step, V vocabulary ids.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_GREEDY_BELOW = 1e-5  # vLLM's bound on a temperature that counts as 0


def over_all_ids(forward: Callable[..., Any], limit: int | None) -> Callable[..., Any]:
    """The `forward` of vLLM's sampler, drawing ids below `limit` alone (None: all), with the log-probabilities we want.

    vLLM's own, in the mode `processed_logprobs`, are those of logits / temperature over the ids that top_k and top_p
    left; so is what it is given where nothing is left out. Else they are replaced by those over all ids.
    """

    def sample(logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        if limit is None and sampling_metadata.top_k is None and sampling_metadata.top_p is None:
            return forward(logits, sampling_metadata, *args, **kwargs)
        scaled_NV, temperature_N = logits.float(), sampling_metadata.temperature
        if temperature_N is not None:
            scaled_NV = scaled_NV / torch.where(temperature_N < _GREEDY_BELOW, 1.0, temperature_N)[:, None]
        logprobs_NV = scaled_NV.log_softmax(-1)
        if limit is not None:
            logits[:, limit:] = float("-inf")
        output = forward(logits, sampling_metadata, *args, **kwargs)
        if output.logprobs_tensors is not None:
            sampled_N1 = output.sampled_token_ids.long()
            output.logprobs_tensors.logprobs[:, :1] = logprobs_NV.gather(1, sampled_N1)
        return output

    return sample
