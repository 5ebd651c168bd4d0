"""The critic's scalar output layer."""

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn


class ValueHead(nn.Module):
    """Replaces GPTModel.output_layer on the last pipeline stage: hidden [S, B, H] -> values [S, B, 1] in float32.

    The weight is replicated over tensor-parallel ranks. Initialised N(0, 1/(H+1)^2), as the SimpleRL recipe's critic.
    """

    def __init__(self, hidden_size: int, *, sequence_parallel: bool, tensor_group, generator: torch.Generator, device):
        super().__init__()
        weight = torch.randn(1, hidden_size, generator=generator) / (hidden_size + 1)
        self.weight = nn.Parameter(weight.to(device))
        # Each tensor rank sees a slice of the sequence, so Megatron must sum this gradient over them.
        self.weight.sequence_parallel = sequence_parallel
        self.sequence_parallel = sequence_parallel
        self.tensor_group = tensor_group

    def forward(self, hidden_SBH: Tensor, weight=None, runtime_gather_output=None) -> tuple[Tensor, None]:
        values_SB1 = torch.nn.functional.linear(hidden_SBH, self.weight.to(hidden_SBH.dtype)).float()
        if self.sequence_parallel:
            # Every rank computes the same loss from the gathered values, so backward splits instead of summing.
            values_SB1 = gather_from_sequence_parallel_region(
                values_SB1, tensor_parallel_output_grad=False, group=self.tensor_group
            )
        return values_SB1, None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets=(), metadata=None):
        """The weight as one replicated tensor of Megatron's distributed checkpoint."""
        from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

        return make_sharded_tensors_for_checkpoint(self.state_dict(), prefix, {}, sharded_offsets)
