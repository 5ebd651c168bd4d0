"""Places in host memory: of the right form, apart from each other, and few blocks of them."""

import torch

from nemo_simplerl.trainer.learners import host_memory
from nemo_simplerl.trainer.learners.host_memory import pinned_like


def test_each_tensor_has_a_place_of_its_own_in_blocks_that_are_filled(monkeypatch):
    monkeypatch.setattr(host_memory, "_BLOCK", 1024)
    shapes = [((3, 5), torch.float32), ((), torch.float32), ((7,), torch.bfloat16), ((0, 4), torch.float32)]
    shapes += [((20, 10), torch.float64), ((100,), torch.int64), ((9,), torch.float32)]  # 1,600 bytes; 800; 36
    tensors = [torch.full(shape, index, dtype=dtype) for index, (shape, dtype) in enumerate(shapes)]
    places = pinned_like(tensors)
    for place, tensor in zip(places, tensors, strict=True):
        place.copy_(tensor)
    for place, tensor in zip(places, tensors, strict=True):
        assert (place.shape, place.dtype) == (tensor.shape, tensor.dtype) and torch.equal(place, tensor)
        assert place.data_ptr() % 64 == 0 or place.numel() == 0
    blocks = {place.untyped_storage().data_ptr(): place.untyped_storage().nbytes() for place in places}
    # 64 + 64 + 64 bytes in a first block, the second is of the one that is larger than any, the third of the rest.
    assert sorted(blocks.values()) == [64 + 832, 1024, 1600]
