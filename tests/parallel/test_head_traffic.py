"""Kernels and bytes of the output layer at the size of the 7B recipe on one rank of four, counted without data."""

import torch

from nemo_simplerl.parallel.vocab import linear_logprob_entropy
from support.kernels import KernelCount

TOKENS, HIDDEN, VOCAB = 16384, 3584, 152064 // 4
LAYERS, QUERIES, KEYS, FFN = 28, 3584 // 4, 512 // 4, 18944 // 4


def _counted(*, entropy: bool, trains: bool, fused: bool = True) -> KernelCount:
    hidden_NH = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16, device="meta").requires_grad_(trains)
    weight_VH = torch.empty(VOCAB, HIDDEN, dtype=torch.bfloat16, device="meta").requires_grad_(trains)
    targets_N = torch.empty(TOKENS, dtype=torch.int64, device="meta")
    with KernelCount() as count:
        logprobs_N, _ = linear_logprob_entropy(
            hidden_NH,
            weight_VH,
            targets_N,
            group=None,
            vocab_size=VOCAB,
            temperature=0.6,
            entropy=entropy,
            fuse=count.as_one if fused else None,
        )
        if trains:
            logprobs_N.sum().backward()
    return count


def _bytes_of_the_layers() -> int:
    """What an update's kernels read and write in the layers, which are computed twice forward and once backward.

    Sequence parallelism: norms and residuals of a quarter of the tokens, a gather or a scatter of all of them around
    attention and around the MLP. One kernel each for a product, a norm, rotation, attention, SwiGLU, a residual.
    """
    of_width = 2 * TOKENS
    products = [(HIDDEN, QUERIES + 2 * KEYS), (QUERIES, HIDDEN), (HIDDEN, 2 * FFN), (FFN, HIDDEN)]
    product = sum(of_width * (one + other) + 2 * one * other for one, other in products)
    to_weights = sum(of_width * (one + other) + 8 * one * other for one, other in products)  # added to float32 sums
    between = of_width * (
        2 * (2 * HIDDEN // 4 + 3 * HIDDEN // 4)  # norm and residual
        + 4 * (HIDDEN + HIDDEN // 4)  # gathers and scatters
        + 2 * (QUERIES + KEYS)
        + 2 * (QUERIES + KEYS)  # rotation, attention
        + 3 * FFN  # SwiGLU
    )
    backward = product + to_weights + 3 * between // 2
    return LAYERS * (2 * (product + between) + backward)


def test_the_head_is_less_than_8_percent_of_an_updates_traffic():
    head = _counted(entropy=True, trains=True).bytes
    assert head / (head + _bytes_of_the_layers()) < 0.08


def test_log_probabilities_alone_are_less_work_than_with_an_entropy():
    alone, both = (_counted(entropy=entropy, trains=False, fused=False) for entropy in (False, True))
    assert alone.bytes < 0.8 * both.bytes


def test_tiles_are_few_and_their_sums_leave_the_products_in_float32():
    count = _counted(entropy=True, trains=True)
    assert count.kernels < 500
    assert "aten.mm.dtype" in count.names and "aten.addmm.dtype_out" in count.names
    assert not {"aten.mm.default", "aten._to_copy.default"} & set(count.names[:-10])
