"""Attention and rotary embedding of Transformer Engine, with what they demand of packed sequences."""

from typing import Any

import torch
from torch import Tensor, nn

from nemo_simplerl.dry.te.layers import launch


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor | None, flops: int) -> Tensor:
        launch([query, key, value, *([] if bounds is None else [bounds])], 1, flops)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        log_sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, log_sums, bounds)
        ctx.flops = flops
        return out.flatten(-2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *_ = ctx.saved_tensors
        launch([gradient, query, key, value], 3, ctx.flops * 5 // 2)  # five products where forward has two
        made = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (query, key, value))
        return (*made, None, None)


class DotProductAttention(nn.Module):
    def __init__(
        self,
        num_attention_heads,
        kv_channels,
        num_gqa_groups=None,
        attention_dropout=0.0,
        qkv_format="sbhd",
        attn_mask_type="causal",
        window_size=None,
        sequence_parallel=False,
        tp_size=1,
        get_rng_state_tracker=None,
        tp_group=None,
        layer_number=None,
        attention_type="self",
        cp_group=None,
        cp_global_ranks=None,
        cp_stream=None,
        cp_comm_type="p2p",
        softmax_scale=None,
        softmax_type="vanilla",
        return_max_logit=False,
    ):
        super().__init__()

    def forward(
        self,
        query_layer,
        key_layer,
        value_layer,
        attention_mask=None,
        qkv_format=None,
        cu_seqlens_q=None,
        cu_seqlens_kv=None,
        cu_seqlens_q_padded=None,
        cu_seqlens_kv_padded=None,
        max_seqlen_q=None,
        max_seqlen_kv=None,
        attn_mask_type=None,
        window_size=None,
        checkpoint_core_attention=False,
        core_attention_bias_type="no_bias",
        core_attention_bias=None,
        alibi_slopes=None,
        fast_zero_fill=True,
        inference_params=None,
        pad_between_seqs=None,
        fp8_output=False,
    ):
        layers = (query_layer, key_layer, value_layer)
        for tensor in layers:
            assert tensor.is_cuda, "DotProductAttention only supports CUDA tensors."
            assert tensor.dtype in (torch.bfloat16, torch.float16), f"attention of {tensor.dtype}"
        lengths = [query_layer.shape[0]] * query_layer.shape[1]
        if qkv_format == "thd":
            _require_packed(layers, attn_mask_type, (cu_seqlens_q, cu_seqlens_kv), (max_seqlen_q, max_seqlen_kv))
            lengths = cu_seqlens_q.diff().tolist()
            assert sum(lengths) == query_layer.shape[0], (
                f"cu_seqlens_q tells of {sum(lengths)} tokens, the row has {query_layer.shape[0]}"
            )
            assert max(lengths) <= max_seqlen_q, f"a sequence of {max(lengths)} tokens, max_seqlen_q is {max_seqlen_q}"
        heads, size = query_layer.shape[-2:]
        # Two products of n x n scores, of which a causal mask leaves half.
        flops = sum(2 * heads * size * length * length for length in lengths)
        return _Attention.apply(*layers, cu_seqlens_q, flops)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, angles: Tensor, bounds: Tensor | None) -> Tensor:
        ctx.reads = [angles, *([] if bounds is None else [bounds])]
        launch([tensor, *ctx.reads])
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        launch([gradient, *ctx.reads])
        return torch.empty_like(gradient, memory_format=torch.contiguous_format), None, None


def apply_rotary_pos_emb(
    t,
    freqs,
    tensor_format="sbhd",
    start_positions=None,
    interleaved=False,
    fused=False,
    cu_seqlens=None,
    cp_size=1,
    cp_rank=0,
):
    assert fused and cp_size == 1, "the double has the fused rotation of one context rank"
    assert freqs.dim() == 4, f"freqs of {freqs.dim()} dimensions"
    if tensor_format == "thd":
        assert t.dim() == 3, "Queries, keys and values must be 3D tensors when qkv_format = thd!"
        assert cu_seqlens is not None, "cu_seqlens must not be None when tensor_format is 'thd'."
        assert cu_seqlens.dtype == torch.int32, "cu_seqlens must be in dtype torch.int32"
    return _Rotate.apply(t, freqs, cu_seqlens)


def _require_packed(layers: tuple[Tensor, ...], mask: str, bounds: tuple[Any, Any], longest: tuple[Any, Any]) -> None:
    assert all(len(tensor.shape) == 3 for tensor in layers), (
        "Queries, keys and values must be 3D tensors when qkv_format = thd!"
    )
    assert "padding" in mask, "Attention mask type must be padding or padding_causal for qkv_format=thd!"
    for tensor in bounds:
        assert tensor is not None, "cu_seqlens_q and cu_seqlens_kv can not be None when qkv_format = thd!"
        assert tensor.dtype == torch.int32, "cu_seqlens_q and cu_seqlens_q must both be in dtype torch.int32!"
        assert tensor.is_cuda, "cu_seqlens_q and cu_seqlens_kv are read by kernels: they belong on the GPU"
    for number in longest:
        assert type(number) is int, f"max_seqlen_q and max_seqlen_kv are numbers, not {type(number).__name__}"
