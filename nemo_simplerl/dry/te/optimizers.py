"""Optimizers of Transformer Engine: FusedAdam and the kernels over many tensors."""

from itertools import chain

import torch
from torch import Tensor

from nemo_simplerl.dry.te.layers import launch


class MultiTensorApply:
    def __init__(self, chunk_size):
        self.chunk_size = chunk_size

    def __call__(self, op, noop_flag_buffer, tensor_lists, *args):
        return op(self.chunk_size, noop_flag_buffer, tensor_lists, *args)


multi_tensor_applier = MultiTensorApply(2048 * 32)


def multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor=False):
    launch([noop_flag, *tensor_lists[0]], 2)
    return torch.ones(1, dtype=torch.float32, device=noop_flag.device), torch.empty(0, device=noop_flag.device)


def multi_tensor_scale(chunk_size, noop_flag, tensor_lists, scale):
    launch([noop_flag, *chain(*tensor_lists)])


class FusedAdam(torch.optim.Optimizer):
    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        *,
        bias_correction=True,
        adam_w_mode=True,
        capturable=False,
        master_weights=False,
        master_weight_dtype=torch.float32,
        exp_avg_dtype=torch.float32,
        exp_avg_sq_dtype=torch.float32,
        use_decoupled_grad=False,
        store_param_remainders=False,
        set_grad_none=None,
    ):
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})

    def step(self, closure=None, grad_scaler=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            tensors = [tensor for param in group["params"] for tensor in self._of(param)]
            for tensor in tensors:
                assert tensor.dtype == torch.float32 and tensor.is_contiguous(), f"FusedAdam is given {tensor.dtype}"
            if tensors:
                launch(tensors)

    def _of(self, param: Tensor) -> list[Tensor]:
        """Parameter, gradient and moments; none without a gradient."""
        state = self.state[param]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param.data), torch.zeros_like(param.data)
        return [] if param.grad is None else [param.data, param.grad, state["exp_avg"], state["exp_avg_sq"]]


class FusedSGD(torch.optim.Optimizer):
    """Named where Megatron imports it; never used."""
