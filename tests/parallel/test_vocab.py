"""Log-probability and entropy on one rank, against torch.log_softmax and against central differences."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_simplerl.parallel.vocab import even_chunks, linear_logprob_entropy, tile_of

NUM_TOKENS, HIDDEN, VOCAB, PADDED = 9, 6, 37, 40
TILE = 4, 10


def _inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden_NH, weight_VH = (
        (scale * torch.randn(rows, HIDDEN, generator=generator)).to(dtype)
        for rows, scale in ((NUM_TOKENS, 1.5), (PADDED, 1.0))
    )
    targets_N = torch.randint(0, VOCAB, (NUM_TOKENS,), generator=generator)
    return hidden_NH, weight_VH, targets_N, torch.randn(2, NUM_TOKENS, generator=generator)


def _tiled(hidden_NH, weight_VH, targets_N, **changes):
    arguments = {"group": None, "vocab_size": VOCAB, "tile": TILE}
    return linear_logprob_entropy(hidden_NH, weight_VH, targets_N, **(arguments | changes))


def _dense(hidden_NH, weight_VH, targets_N, temperature):
    """Log-probability and entropy by the plain formulas, in the dtype of the inputs."""
    logp_NV = torch.log_softmax((hidden_NH @ weight_VH[:VOCAB].T) / temperature, dim=-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(dim=-1)
    return logp_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N


def _gradients(function, inputs, outputs, weights_2N):
    """Gradients on hidden states and weight of the weighted sum of `outputs`: 0 the log-probability, 1 the entropy."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    results = function(*leaves)
    sum((weights_2N[index] * results[index]).sum() for index in outputs).backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("tile", [TILE, None])
def test_equals_the_dense_softmax_forward_and_backward(temperature, outputs, tile):
    hidden_NH, weight_VH, targets_N, weights_2N = _inputs()

    def tiled(*inputs):
        return _tiled(*inputs, targets_N, temperature=temperature, tile=tile)

    def dense(*inputs):
        return _dense(*inputs, targets_N, temperature)

    for mine_N, plain_N in zip(tiled(hidden_NH, weight_VH), dense(hidden_NH, weight_VH), strict=True):
        torch.testing.assert_close(mine_N, plain_N, atol=1e-5, rtol=1e-5)
    mine = _gradients(tiled, (hidden_NH, weight_VH), outputs, weights_2N)
    plain = _gradients(dense, (hidden_NH, weight_VH), outputs, weights_2N)
    for gradient, expected in zip(mine, plain, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
    assert not mine[1][VOCAB:].any()


def test_bf16_products_are_summed_in_float32():
    hidden_NH, weight_VH, targets_N, weights_2N = _inputs(torch.bfloat16)
    logits_NV = (hidden_NH @ weight_VH[:VOCAB].T).float()
    logprobs_N, entropy_N = _tiled(hidden_NH, weight_VH, targets_N)
    assert logprobs_N.dtype == entropy_N.dtype == torch.float32
    expected_N = torch.log_softmax(logits_NV, dim=-1).gather(1, targets_N[:, None])[:, 0]
    torch.testing.assert_close(logprobs_N, expected_N, atol=1e-5, rtol=1e-5)
    mine = _gradients(lambda *inputs: _tiled(*inputs, targets_N), (hidden_NH, weight_VH), (0, 1), weights_2N)
    exact = (hidden_NH.float(), weight_VH.float())
    plain = _gradients(lambda *inputs: _dense(*inputs, targets_N, 1.0), exact, (0, 1), weights_2N)
    for gradient, expected in zip(mine, plain, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.float(), expected, atol=3e-2, rtol=3e-2)


def test_gradient_equals_central_differences_in_float64():
    hidden_NH, weight_VH, targets_N, weights_2N = _inputs(torch.float64)
    targets_N, weights_2N = targets_N[:3], weights_2N[:, :3].double()

    def weighted_sum(*inputs):
        outputs = _tiled(*inputs, targets_N, temperature=0.8, tile=(2, 10))
        return sum((weight_N * output_N).sum() for weight_N, output_N in zip(weights_2N, outputs, strict=True))

    leaves = [tensor.clone().requires_grad_() for tensor in (hidden_NH[:3], weight_VH)]
    weighted_sum(*leaves).backward()
    step = 1e-5
    for number, leaf in enumerate(leaves):
        for row in range(len(leaf)):
            for column in range(HIDDEN):
                nudges = [torch.zeros_like(other) for other in leaves]
                nudges[number][row, column] = step
                up, down = (
                    weighted_sum(*(leaf.detach() + sign * nudge for leaf, nudge in zip(leaves, nudges, strict=True)))
                    for sign in (1, -1)
                )
                assert float(leaf.grad[row, column]) == pytest.approx(float(up - down) / (2 * step), abs=1e-7)


def test_model_precision_rounds_as_a_log_softmax_in_bf16_does():
    hidden_NH, weight_VH, targets_N, weights_2N = _inputs(torch.bfloat16)
    logprobs_N, entropy_N = _tiled(hidden_NH, weight_VH, targets_N, temperature=0.7, fp32=False)
    # Twice rounded, sums exact: the scaled logits, and the log-probabilities they give.
    logits_NV = hidden_NH @ weight_VH[:VOCAB].T
    rounded_NV = (logits_NV / 0.7).float().log_softmax(-1)
    assert torch.equal(logprobs_N, rounded_NV.gather(1, targets_N[:, None])[:, 0].bfloat16().float())
    exact_NV = (logits_NV.float() / 0.7).log_softmax(-1)
    assert (logprobs_N - exact_NV.gather(1, targets_N[:, None])[:, 0]).abs().max() > 1e-3
    torch.testing.assert_close(entropy_N, -(exact_NV.exp() * exact_NV).sum(-1), atol=1e-2, rtol=1e-2)

    def in_bf16(*inputs):
        return _tiled(*inputs, targets_N, temperature=0.7, fp32=False)

    def dense(*inputs):
        return _dense(*inputs, targets_N, 0.7)

    mine = _gradients(in_bf16, (hidden_NH, weight_VH), (0,), weights_2N)
    plain = _gradients(dense, (hidden_NH, weight_VH), (0,), weights_2N.bfloat16())
    for gradient, expected in zip(mine, plain, strict=True):
        torch.testing.assert_close(gradient, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("fp32", [True, False])
def test_without_an_entropy_the_log_probabilities_and_gradients_are_the_same(fp32):
    hidden_NH, weight_VH, targets_N, weights_2N = _inputs()
    assert _tiled(hidden_NH, weight_VH, targets_N, entropy=False)[1] is None

    def with_entropy(entropy):
        return lambda *inputs: _tiled(*inputs, targets_N, temperature=0.7, fp32=fp32, entropy=entropy)

    found, expected = (with_entropy(entropy)(hidden_NH, weight_VH)[0] for entropy in (False, True))
    assert torch.equal(found, expected)
    gradients = [
        _gradients(with_entropy(entropy), (hidden_NH, weight_VH), (0,), weights_2N) for entropy in (False, True)
    ]
    assert all(map(torch.equal, *gradients))


def test_work_on_a_tile_that_is_made_one_kernel_gives_the_same_numbers():
    hidden_NH, weight_VH, targets_N, weights_2N = _inputs()
    # Traced and run operation by operation: what a compiler would be given, with nothing left to Python.
    fuse = functools.cache(functools.partial(torch.compile, backend="eager", fullgraph=True, dynamic=True))
    for entropy, outputs in ((True, (0, 1)), (False, (0,))):
        plain, fused = (
            functools.partial(_tiled, targets_N=targets_N, temperature=0.7, entropy=entropy, fuse=how)
            for how in (None, fuse)
        )
        for mine, expected in zip(
            _gradients(fused, (hidden_NH, weight_VH), outputs, weights_2N),
            _gradients(plain, (hidden_NH, weight_VH), outputs, weights_2N),
            strict=True,
        ):
            torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("total", "most", "widths"),
    [
        (38016, 4096, [3800, 3800, 3800, 3800, 3808, 3800, 3800, 3800, 3800, 3808]),
        (2049, 1024, [680, 688, 681]),
        (37, 10, [9, 9, 9, 10]),
        (8, 8, [8]),
        (0, 8, []),
    ],
)
def test_chunks_are_as_wide_as_one_another_to_a_unit(total, most, widths):
    chunks = list(even_chunks(total, most))
    assert [chunk.stop - chunk.start for chunk in chunks] == widths
    assert [chunk.start for chunk in chunks] == [sum(widths[:index]) for index in range(len(widths))]


@pytest.mark.parametrize(("tokens", "columns"), [(16384, 38016), (16384, 152064), (100, 152064), (30000, 1000), (1, 8)])
def test_a_tile_takes_its_memory_and_no_more(tokens, columns):
    of_tokens, of_columns = tile_of(tokens, columns, 2**24)
    held = min(of_tokens, tokens) * min(of_columns, columns) * 4
    assert held <= 2**24
    assert held > 0.6 * min(2**24, tokens * columns * 4)


def _from_logits(logits_NV, targets_N, **changes):
    """Log-probability and entropy of given logits: hidden states that the identity as output layer turns into them."""
    return _tiled(logits_NV, torch.eye(logits_NV.shape[1]), targets_N, **changes)


def test_a_uniform_row_by_hand():
    logprobs_N, entropy_N = _from_logits(
        torch.full((1, PADDED), 4.0), torch.tensor([3]), vocab_size=8, temperature=0.5, tile=(4, 3)
    )
    log_8 = 2.0794415
    assert float(logprobs_N) == pytest.approx(-log_8)
    assert float(entropy_N) == pytest.approx(log_8)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_huge_logits_stay_finite(columns):
    logits_NV = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    targets_N = torch.tensor([1, 2])
    logprobs_N, entropy_N = _from_logits(logits_NV, targets_N, vocab_size=3, tile=(4, columns))
    torch.testing.assert_close(logprobs_N, torch.tensor([-2e4, -1.0986123]))
    torch.testing.assert_close(entropy_N, torch.tensor([0.0, 1.0986123]))


def test_a_target_outside_the_vocabulary_is_nan_and_its_row_can_be_masked_out():
    hidden_NH, weight_VH, targets_N, _ = _inputs()
    targets_N[0], targets_N[1] = -100, VOCAB
    hidden_NH.requires_grad_()
    logprobs_N, entropy_N = _tiled(hidden_NH, weight_VH, targets_N)
    assert logprobs_N.isnan().tolist() == [True, True] + [False] * 7
    assert entropy_N.isfinite().all()
    logprobs_N[2:].sum().backward()
    assert not hidden_NH.grad[:2].any()
    assert hidden_NH.grad.isfinite().all()


def test_no_tokens_give_no_numbers_and_a_gradient_of_zero():
    hidden_NH, weight_VH, _, _ = _inputs()
    weight_VH.requires_grad_()
    logprobs_N, _ = _tiled(hidden_NH[:0], weight_VH, torch.zeros(0, dtype=torch.long))
    logprobs_N.sum().backward()
    assert logprobs_N.shape == (0,)
    assert not weight_VH.grad.any()


class _Allocations(TorchDispatchMode):
    """Records the size in elements of the largest tensor that an operation made, the `known` sizes left out."""

    def __init__(self, *known: int):
        super().__init__()
        self.known, self.largest = known, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(output, torch.Tensor):
                size = output.untyped_storage().nbytes() // output.element_size()
                self.largest = max(self.largest, 0 if size in self.known else size)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fp32", [True, False])
def test_no_tensor_is_larger_than_a_tile_but_the_gradients(fp32, dtype):
    num_tokens, vocab, hidden = 60, 50, 7
    hidden_NH = torch.randn(num_tokens, hidden).to(dtype).requires_grad_()
    weight_VH = torch.randn(vocab + 3, hidden).to(dtype).requires_grad_()
    targets_N = torch.randint(0, vocab, (num_tokens,))
    with _Allocations(hidden_NH.numel(), weight_VH.numel()) as allocations:
        logprobs_N, entropy_N = _tiled(hidden_NH, weight_VH, targets_N, vocab_size=vocab, fp32=fp32, tile=(20, 10))
        torch.autograd.grad((logprobs_N + entropy_N).sum(), (hidden_NH, weight_VH))
    assert allocations.largest == 20 * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.long)}, "targets \\(3,\\) are not"),
        ({"weight": torch.zeros(PADDED, HIDDEN + 1)}, "weight \\(40, 7\\)"),
        ({"vocab_size": 41}, "1 ranks x 40 rows cannot hold a vocabulary of 41"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_misuse_is_refused(change, message):
    arguments = {
        "hidden": torch.zeros(NUM_TOKENS, HIDDEN),
        "weight": torch.zeros(PADDED, HIDDEN),
        "targets": torch.zeros(NUM_TOKENS, dtype=torch.long),
        "group": None,
        "vocab_size": VOCAB,
    }
    with pytest.raises(ValueError, match=message):
        linear_logprob_entropy(**(arguments | change))
