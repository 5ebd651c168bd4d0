"""Weights of a file in the place of a trained model's export."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nemo_simplerl.rollout.refit import bucketed


class FileExport:
    """See rollout.sending.Export; of one rank."""

    has_buffer = False
    device = torch.device("cpu")

    def __init__(self, weights: Mapping[str, Tensor], max_bytes: int):
        self._buckets = list(bucketed(weights.items(), max_bytes))
        self.contents = [[(name, tensor.to("meta")) for name, tensor in bucket] for bucket in self._buckets]

    def __iter__(self):
        return map(iter, self._buckets)
