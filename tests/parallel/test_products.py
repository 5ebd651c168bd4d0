"""Products whose sums arrive in float32 from a GPU, and as today from a CPU."""

import pytest
import torch

from nemo_simplerl.parallel.products import add_product, product, scores
from support.kernels import KernelCount

LEFT, RIGHT = torch.randn(2, 3, 5), torch.randn(2, 5, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_cpu_gives_the_plain_product_in_the_accumulation_dtype(dtype):
    left, right = LEFT.to(dtype), RIGHT.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for found, plain in ((product(left, right), left @ right), (product(left[0], right[0]), left[0] @ right[0])):
        assert found.dtype == wide and torch.equal(found, plain.to(wide))
    bias = torch.randn(2, 3, 4).to(dtype)
    assert torch.equal(scores(bias, left, right), torch.baddbmm(bias, left, right))
    total = torch.ones(3, 4, dtype=wide)
    add_product(total, left[0], right[0])
    torch.testing.assert_close(total, 1 + (left[0] @ right[0]).to(wide))


def test_a_gpu_gives_the_sums_themselves_in_one_kernel():
    left, right = LEFT.bfloat16().to("meta"), RIGHT.bfloat16().to("meta")
    total = torch.empty(3, 4, device="meta")
    add_product(total, left[0], right[0])  # finds out, once, what this torch can do
    with KernelCount() as count:
        assert product(left, right).dtype == product(left[0], right[0]).dtype == torch.float32
        add_product(total, left[0], right[0])
        assert scores(torch.empty(4, dtype=torch.bfloat16, device="meta"), left, right).dtype == torch.float32
    assert count.names == [
        "aten.bmm.dtype",
        "aten.mm.dtype",
        "aten.addmm.dtype_out",
        "aten.bmm.dtype",
        "aten.add_.Tensor",
    ]
