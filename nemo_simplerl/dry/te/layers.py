"""Linear layers and norms of Transformer Engine: what they allocate, save and exchange.

Parallel modes and sequence parallelism are Megatron-LM's (arXiv:1909.08053, arXiv:2205.05198).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def launch(reads: list[Tensor], kernels: int = 1, attention_flops: int = 0) -> None:
    """Tell the recorder of kernels that read these tensors."""
    torch.ops.simplerl_dry.launch(reads, kernels, attention_flops)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, inp: Tensor, bias: Tensor | None, layer: "_ParallelLinear") -> Tensor:
        assert inp.dtype == weight.dtype, f"an input of {inp.dtype} to a weight of {weight.dtype}"
        ctx.layer, ctx.has_bias = layer, bias is not None
        ctx.save_for_backward(inp, weight)
        whole = _gather(inp, layer) if layer.gathers else inp
        flat = whole.reshape(-1, whole.shape[-1])
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        out = out.view(*whole.shape[:-1], -1)
        return _reduce(out, layer) if layer.parallel_mode == "row" else out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        inp, weight = ctx.saved_tensors
        layer = ctx.layer
        if layer.parallel_mode == "row" and layer.sequence_parallel:
            gradient = _gather(gradient, layer)
        whole = _gather(inp, layer) if layer.gathers else inp
        flat = gradient.reshape(-1, gradient.shape[-1])
        inp_gradient = (flat @ weight).view(*gradient.shape[:-1], -1)
        weight_gradient = flat.t() @ whole.reshape(-1, whole.shape[-1])
        bias_gradient = flat.sum(0) if ctx.has_bias else None
        if layer.parallel_mode == "column":
            inp_gradient = _reduce(inp_gradient, layer)
        return weight_gradient, inp_gradient.view(inp.shape), bias_gradient, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inp: Tensor, weight: Tensor) -> Tensor:
        assert inp.dtype == weight.dtype, f"a norm of {inp.dtype} with a weight of {weight.dtype}"
        launch([inp, weight])
        scale = torch.empty(inp.numel() // inp.shape[-1], dtype=torch.float32, device=inp.device)
        ctx.save_for_backward(inp, weight, scale)
        return torch.empty_like(inp)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inp, weight, scale = ctx.saved_tensors
        launch([gradient, inp, weight, scale], 2)
        return torch.empty_like(inp), torch.empty_like(weight)


class _ParallelLinear(nn.Module):
    def _build(
        self,
        in_features: int,
        out_features: int,
        *,
        parallel_mode: str | None,
        tp_group: dist.ProcessGroup | None,
        tp_size: int,
        sequence_parallel: bool,
        bias: bool,
        return_bias: bool,
        params_dtype: torch.dtype | None,
        device: torch.device | str,
        init_method: Any,
    ) -> None:
        self.tp_group, self.tp_size, self.parallel_mode = tp_group, tp_size, parallel_mode
        self.sequence_parallel = tp_size > 1 and sequence_parallel
        self.apply_bias = bias and not return_bias
        self.in_features = in_features // tp_size if parallel_mode == "row" else in_features
        self.out_features = out_features // tp_size if parallel_mode == "column" else out_features
        options: dict[str, Any] = {"dtype": params_dtype, "device": device}
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, **options))
        if init_method is not None:
            init_method(self.weight)
        _mark_sharded(self.weight, 1 if parallel_mode == "row" else 0)
        if not bias:
            self.bias = torch.empty(0, **options)
            return
        self.bias = nn.Parameter(torch.zeros(self.out_features, **options))
        if parallel_mode == "row":
            self.bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        elif parallel_mode == "column":
            _mark_sharded(self.bias, 0)

    @property
    def gathers(self) -> bool:
        """Whether it needs the whole sequence of an input that ranks share."""
        return self.parallel_mode == "column" and self.sequence_parallel

    def _product(self, inp: Tensor) -> Tensor:
        return _Linear.apply(self.weight, inp, self.bias if self.apply_bias else None, self)


class Linear(_ParallelLinear):
    def __init__(
        self,
        in_features,
        out_features,
        sequence_parallel=False,
        fuse_wgrad_accumulation=False,
        tp_group=None,
        tp_size=1,
        get_rng_state_tracker=None,
        rng_tracker_name=None,
        init_method=None,
        bias=True,
        return_bias=False,
        params_dtype=None,
        parallel_mode=None,
        parameters_split=None,
        device="cuda",
        ub_overlap_ag=False,
        ub_overlap_rs=False,
        ub_overlap_rs_dgrad=False,
        ub_bulk_dgrad=False,
        ub_bulk_wgrad=False,
        ub_name=None,
        delay_wgrad_compute=False,
        symmetric_ar_type=None,
        save_original_input=False,
        name=None,
    ):
        super().__init__()
        self._build(
            in_features,
            out_features,
            parallel_mode=parallel_mode,
            tp_group=tp_group,
            tp_size=tp_size,
            sequence_parallel=sequence_parallel,
            bias=bias,
            return_bias=return_bias,
            params_dtype=params_dtype,
            device=device,
            init_method=init_method,
        )

    def forward(self, inp, is_first_microbatch=None, fp8_output=False, fp8_grad=False):
        return self._product(inp)


class LayerNormLinear(_ParallelLinear):
    def __init__(
        self,
        in_features,
        out_features,
        eps=1e-5,
        sequence_parallel=False,
        fuse_wgrad_accumulation=False,
        tp_group=None,
        tp_size=1,
        get_rng_state_tracker=None,
        init_method=None,
        bias=True,
        normalization="LayerNorm",
        return_bias=False,
        params_dtype=None,
        parallel_mode=None,
        return_layernorm_output=False,
        return_layernorm_output_gathered=False,
        parameters_split=None,
        zero_centered_gamma=False,
        device="cuda",
        ub_overlap_ag=False,
        ub_overlap_rs=False,
        ub_overlap_rs_dgrad=False,
        ub_bulk_wgrad=False,
        ub_bulk_dgrad=False,
        ub_name=None,
        delay_wgrad_compute=False,
        symmetric_ar_type=None,
        name=None,
    ):
        super().__init__()
        assert normalization == "RMSNorm", f"the double has no {normalization}"
        self.layer_norm_weight = nn.Parameter(torch.ones(in_features, dtype=params_dtype, device=device))
        self._build(
            in_features,
            out_features,
            parallel_mode=parallel_mode,
            tp_group=tp_group,
            tp_size=tp_size,
            sequence_parallel=sequence_parallel,
            bias=bias,
            return_bias=return_bias,
            params_dtype=params_dtype,
            device=device,
            init_method=init_method,
        )
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel

    def forward(self, inp, is_first_microbatch=None, fp8_output=False, fp8_grad=False):
        return self._product(_Norm.apply(inp, self.layer_norm_weight))


class RMSNorm(nn.Module):
    def __init__(
        self,
        normalized_shape=None,
        eps=1e-5,
        sequence_parallel=None,
        params_dtype=None,
        zero_centered_gamma=False,
        hidden_size=None,
        **kwargs,
    ):
        super().__init__()
        size = hidden_size if normalized_shape is None else normalized_shape
        self.weight = nn.Parameter(torch.ones(size, dtype=params_dtype, device=kwargs.get("device", "cuda")))
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, inp):
        return _Norm.apply(inp, self.weight)


def _mark_sharded(parameter: Tensor, dimension: int) -> None:
    assert not hasattr(parameter, "partition_dim"), "a parameter is marked as sharded twice"
    parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, dimension, 1  # type: ignore[attr-defined]


def _gather(part: Tensor, layer: _ParallelLinear) -> Tensor:
    whole = part.new_empty(part.shape[0] * layer.tp_size, *part.shape[1:])
    dist.all_gather_into_tensor(whole, part.contiguous(), group=layer.tp_group)
    return whole


def _reduce(whole: Tensor, layer: _ParallelLinear) -> Tensor:
    """The sum over tensor ranks: this rank's part of the sequence under sequence parallelism."""
    if layer.tp_size == 1:
        return whole
    if not layer.sequence_parallel:
        dist.all_reduce(whole, group=layer.tp_group)
        return whole
    part = whole.new_empty(whole.shape[0] // layer.tp_size, *whole.shape[1:])
    dist.reduce_scatter_tensor(part, whole, group=layer.tp_group)
    return part
