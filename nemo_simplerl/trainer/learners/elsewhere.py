"""A model that lives on other ranks, as this rank's part of the page sees it: what it computes is of no rows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nemo_simplerl.data.batch import Batch
from nemo_simplerl.trainer.learners.updates import UpdateLoop


class ModelElsewhere:
    """Stands for Actor or Critic on ranks that do not hold it. Batches have no rows there, and nothing is learnt."""

    has_earlier = False

    def __init__(self) -> None:
        self.update_loop = UpdateLoop()

    def logprobs(self, batch: Batch) -> Tensor:
        """float32 [0, 1], as all columns here."""
        return torch.zeros_like(batch.mask_BT)

    reference_logprobs = earlier_logprobs = values = logprobs

    def update(self, *args: Any) -> list[dict[str, float]]:
        """No updates."""
        return []

    def hf_buckets(self, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """No weights."""
        return iter(())
