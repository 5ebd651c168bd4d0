import pytest
import torch

from nemo_simplerl.rollout.digest import copy_and_digest, device_digest, digest
from support.links import flipped

DIGESTS = pytest.mark.parametrize("digest_of", [digest, device_digest])


@DIGESTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64])
@pytest.mark.parametrize("size", [1, 7])
def test_every_flipped_bit_changes_the_digest(digest_of, dtype, size):
    tensor = torch.randn(size).mul(50).to(dtype)
    bits = range(8 * tensor.nbytes)
    assert len({digest_of(tensor)} | {digest_of(flipped(tensor, bit)) for bit in bits}) == len(bits) + 1


@DIGESTS
def test_every_exchange_of_two_places_changes_the_digest(digest_of):
    tensor = torch.arange(40, dtype=torch.int32)
    seen = {digest_of(tensor)}
    for i in range(40):
        for j in range(i):
            order = torch.arange(40)
            order[[i, j]] = order[[j, i]]
            seen.add(digest_of(tensor[order]))
    assert len(seen) == 1 + 40 * 39 // 2


@DIGESTS
def test_a_digest_is_of_the_values_in_their_order_and_not_of_the_layout(digest_of):
    tensor = torch.randn(6, 5)
    padded = torch.zeros(31, dtype=torch.float32)[1:].view(6, 5).copy_(tensor)
    assert digest_of(tensor) == digest_of(tensor.T.contiguous().T) == digest_of(padded) == digest_of(tensor.flatten())
    assert digest_of(tensor) != digest_of(tensor.T)
    for size in (9, 10):
        odd = torch.arange(size, dtype=torch.int8)[1:]
        assert digest_of(odd) == digest_of(odd.clone())
    assert len({digest_of(torch.zeros(size)) for size in (0, 1)} | {digest_of(torch.ones(1))}) == 3


@DIGESTS
def test_parts_of_a_large_tensor_cannot_change_places(digest_of):
    tensor = torch.randint(0, 256, (2**25,), dtype=torch.uint8)  # two parts of 4 million words
    swapped = torch.cat([tensor[2**24 :], tensor[: 2**24]])
    assert digest_of(tensor) != digest_of(swapped)


def test_a_copy_between_unlike_layouts_has_the_digest_of_the_values():
    source, target = torch.randn(4, 4), torch.zeros(4, 8)[:, ::2]
    assert copy_and_digest(target, source) == digest(source) == digest(target)


@pytest.mark.parametrize("size", [1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_a_copy_made_in_blocks_has_the_digest_of_the_whole(size):
    source, target = torch.randn(size), torch.zeros(size)
    assert copy_and_digest(target, source) == digest(source)
    assert torch.equal(target, source)


def test_the_digest_of_a_copy_is_of_the_target_and_not_of_the_source():
    class Worn(torch.Tensor):
        """Memory that cannot hold a value above 1."""

        def copy_(self, source):
            return super().copy_(source).clamp_(max=1.0)

    worn = torch.zeros(2).as_subclass(Worn)
    assert copy_and_digest(worn, torch.tensor([0.5, 2.0])) == digest(torch.tensor([0.5, 1.0]))
