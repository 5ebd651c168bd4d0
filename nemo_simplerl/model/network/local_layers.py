"""Attention and norm for Megatron's local layers, where Transformer Engine is absent."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SdpaAttention(nn.Module):
    """Megatron's core_attention over torch's scaled_dot_product_attention.

    Megatron's own local DotProductAttention builds the full [B, heads, S, S] scores and draws on the CUDA generator
    even with dropout 0. Sequences are padded on the right, so the causal mask alone keeps padding out of every token
    that counts.
    """

    def __init__(self, config, layer_number, attn_mask_type, attention_type, softmax_scale=None, **_):
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask=None,
        attn_mask_type=None,
        attention_bias=None,
        packed_seq_params=None,
        **_,
    ) -> Tensor:
        """query [S, B, heads/TP, D], key and value [S, B, groups/TP, D] -> context [S, B, heads/TP * D].

        With `packed_seq_params` the sequences of a row of P tokens lie end to end: query [P, heads/TP, D], key and
        value [P, groups/TP, D] -> [P, heads/TP * D]. Each sequence attends to itself alone.
        """
        assert attention_mask is None and attention_bias is None
        if packed_seq_params is None:
            return self._attend(query, key, value)
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        parts = zip(*(tensor[:, None].split(lengths) for tensor in (query, key, value)), strict=True)
        return torch.cat([self._attend(*part) for part in parts])[:, 0]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        context = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return context.permute(2, 0, 1, 3).flatten(2)


class RmsNorm(nn.RMSNorm):
    """RMSNorm with Megatron's constructor. Megatron's own torch wrapper refuses sequence parallelism, though the mark
    on the weight is enough for it to sum the gradient over the tensor ranks' slices of the sequence."""

    def __init__(self, config, hidden_size: int, eps: float = 1e-6, **_):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel
