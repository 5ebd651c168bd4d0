"""Copies in host memory: of the right shape and type, apart from each other, and in few blocks."""

import torch

from nemo_simplerl.trainer.learners.host_memory import HostWeights, pinned_like


def test_each_tensor_has_memory_of_its_own_in_blocks_that_are_filled():
    shapes = [((3, 5), torch.float32), ((), torch.float32), ((7,), torch.bfloat16), ((0, 4), torch.float32)]
    shapes += [((20, 10), torch.float64), ((100,), torch.int64), ((9,), torch.float32)]  # 1,600 bytes; 800; 36
    tensors = [torch.full(shape, index, dtype=dtype) for index, (shape, dtype) in enumerate(shapes)]
    copies = pinned_like(tensors, block_bytes=1024)
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor)
    for copy, tensor in zip(copies, tensors, strict=True):
        assert (copy.shape, copy.dtype) == (tensor.shape, tensor.dtype) and torch.equal(copy, tensor)
        assert copy.data_ptr() % 64 == 0 or copy.numel() == 0
    blocks = {copy.untyped_storage().data_ptr(): copy.untyped_storage().nbytes() for copy in copies}
    # 64 + 64 + 64 bytes in a first block, the second is of the one that is larger than any, the third of the rest.
    assert sorted(blocks.values()) == [64 + 832, 1024, 1600]


def test_kept_weights_take_the_place_of_the_models_for_a_while_whatever_happens_then():
    model = torch.nn.Linear(2, 1)
    kept = HostWeights(model)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1.0
    try:
        with kept.in_place():
            assert torch.equal(model.weight, first)
            raise KeyError
    except KeyError:
        assert torch.equal(model.weight, first + 1.0)
    kept.keep()
    with torch.no_grad():
        model.weight += 1.0
    with kept.in_place():
        assert torch.equal(model.weight, first + 1.0)
    assert torch.equal(model.weight, first + 2.0)
