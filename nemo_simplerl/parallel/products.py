"""Matrix products whose sums arrive in float32.

A GPU sums products of bfloat16 in float32 and then rounds the sum to bfloat16, unless it is asked for the sum itself
(`out_dtype`, torch 2.8 or later). That rounding is 0.06 for a logit near 20. CPUs have no such product: there, and
before torch 2.8, sums are rounded to the dtype of the operands first. float32 and float64 keep their own everywhere.
"""

import functools

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_GPU = ("cuda", "meta")  # meta, which computes nothing, stands for a GPU where kernels and bytes are counted
_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()


def accumulation_dtype(values: Tensor) -> torch.dtype:
    """float32 for training dtypes; float64 keeps its own, which finite-difference checks need."""
    return torch.promote_types(values.dtype, torch.float32)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in the accumulation dtype: [M, K] x [K, N], or [B, M, K] x [B, K, N]."""
    multiply = torch.mm if left.ndim == 2 else torch.bmm
    if _arrives_in_float32(left):
        return multiply(left, right, out_dtype=torch.float32)
    return multiply(left, right).to(accumulation_dtype(left))


def scores(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """bias + left @ right, [B, M, K] x [B, K, N]: in float32 from a GPU, elsewhere in the dtype of the operands."""
    if _arrives_in_float32(left):
        return torch.bmm(left, right, out_dtype=torch.float32).add_(bias)
    return torch.baddbmm(bias, left, right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right in place, [M, K] x [K, N]; `total` is in the accumulation dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif _arrives_in_float32(left) and _adds_to_float32(left.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.add_(product(left, right))


@functools.cache
def _adds_to_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of bfloat16 is added to a float32 matrix in its own kernel: the first versions of `out_dtype`
    wanted that matrix in bfloat16 too."""
    operand = torch.zeros(8, 8, dtype=dtype, device=device)
    try:
        torch.addmm(operand.float(), operand, operand, out_dtype=torch.float32)
    except RuntimeError:
        return False
    return True


def _arrives_in_float32(operand: Tensor) -> bool:
    return _HAS_OUT_DTYPE and operand.dtype in _HALF and operand.device.type in _GPU
