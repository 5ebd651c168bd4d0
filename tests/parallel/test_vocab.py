"""Vocab-parallel log-probability and entropy on one rank: against torch.log_softmax and differences."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_simplerl.parallel.vocab import vocab_parallel_logprob_entropy

NUM_TOKENS, VOCAB, PADDED = 9, 37, 40


def _inputs(dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits_NV = (scale * torch.randn(NUM_TOKENS, PADDED, generator=generator)).to(dtype)
    targets_N = torch.randint(0, VOCAB, (NUM_TOKENS,), generator=generator)
    return logits_NV, targets_N, torch.randn(2, NUM_TOKENS, generator=generator)


def _dense(logits_NV, targets_N, temperature):
    """The plain formulas, in the dtype given."""
    logp_NV = torch.log_softmax(logits_NV[:, :VOCAB] / temperature, dim=-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(dim=-1)
    return logp_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N


def _gradient(function, logits_NV, outputs, weights_2N):
    """Gradient on the logits of the weighted sum of `outputs`: 0 the log-probability, 1 the entropy."""
    leaf_NV = logits_NV.clone().requires_grad_()
    results = function(leaf_NV.clone())
    sum((weights_2N[index] * results[index]).sum() for index in outputs).backward()
    return leaf_NV.grad


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)])
def test_equals_the_dense_softmax_forward_and_backward(temperature, dtype, outputs):
    logits_NV, targets_N, weights_2N = _inputs(dtype)

    def parallel(values_NV):
        return vocab_parallel_logprob_entropy(
            values_NV, targets_N, group=None, vocab_size=VOCAB, temperature=temperature, chunk_tokens=4
        )

    def dense(values_NV):
        return _dense(values_NV.float(), targets_N, temperature)

    for mine_N, plain_N in zip(parallel(logits_NV), dense(logits_NV), strict=True):
        assert mine_N.dtype == torch.float32
        torch.testing.assert_close(mine_N, plain_N, atol=1e-5, rtol=1e-5)
    gradient_NV = _gradient(parallel, logits_NV, outputs, weights_2N)
    assert gradient_NV.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    expected_NV = _gradient(dense, logits_NV, outputs, weights_2N)
    torch.testing.assert_close(gradient_NV, expected_NV, atol=tolerance, rtol=tolerance)
    assert not gradient_NV[:, VOCAB:].any()


def test_gradient_equals_central_differences_in_float64():
    logits_NV, targets_N, weights_2N = (tensor[:3] for tensor in _inputs(torch.float64))
    weights_2N = weights_2N[:, :3].double()

    def weighted_sum(values_NV):
        outputs = vocab_parallel_logprob_entropy(
            values_NV, targets_N, group=None, vocab_size=VOCAB, temperature=0.8, chunk_tokens=2
        )
        return sum((weight_N * output_N).sum() for weight_N, output_N in zip(weights_2N, outputs, strict=True))

    leaf_NV = logits_NV.clone().requires_grad_()
    weighted_sum(leaf_NV.clone()).backward()
    step = 1e-6
    for row in range(3):
        for column in range(PADDED):
            nudge_NV = torch.zeros_like(logits_NV)
            nudge_NV[row, column] = step
            slope = (weighted_sum(logits_NV + nudge_NV) - weighted_sum(logits_NV - nudge_NV)) / (2 * step)
            assert float(leaf_NV.grad[row, column]) == pytest.approx(float(slope), abs=1e-8)


def test_model_precision_rounds_as_a_log_softmax_in_bf16_does():
    logits_NV, targets_N, weights_2N = _inputs(torch.bfloat16)

    def in_bf16(values_NV):
        return vocab_parallel_logprob_entropy(
            values_NV, targets_N, group=None, vocab_size=VOCAB, temperature=0.7, fp32=False
        )

    def dense(values_NV):
        return _dense(values_NV, targets_N, 0.7)

    logprobs_N, entropy_N = in_bf16(logits_NV)
    # Twice rounded, sums exact: the scaled logits, and the log-probabilities they give.
    rounded_N, _ = _dense((logits_NV / 0.7).float(), targets_N, 1.0)
    assert torch.equal(logprobs_N, rounded_N.bfloat16().float())
    exact_N, exact_entropy_N = _dense(logits_NV.float(), targets_N, 0.7)
    assert (logprobs_N - exact_N).abs().max() > 1e-3
    torch.testing.assert_close(logprobs_N, dense(logits_NV)[0].float(), atol=0, rtol=2**-7)
    torch.testing.assert_close(entropy_N, exact_entropy_N, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(
        _gradient(in_bf16, logits_NV, (0,), weights_2N),
        _gradient(dense, logits_NV, (0,), weights_2N.bfloat16()),
        atol=1e-2,
        rtol=2e-2,
    )


def test_a_uniform_row_by_hand():
    logprobs_N, entropy_N = vocab_parallel_logprob_entropy(
        torch.full((1, PADDED), 4.0), torch.tensor([3]), group=None, vocab_size=8, temperature=0.5
    )
    log_8 = 2.0794415
    assert float(logprobs_N) == pytest.approx(-log_8)
    assert float(entropy_N) == pytest.approx(log_8)


def test_huge_logits_stay_finite():
    logits_NV = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    logprobs_N, entropy_N = vocab_parallel_logprob_entropy(logits_NV, torch.tensor([1, 2]), group=None, vocab_size=3)
    torch.testing.assert_close(logprobs_N, torch.tensor([-2e4, -1.0986123]))
    torch.testing.assert_close(entropy_N, torch.tensor([0.0, 1.0986123]))


def test_the_chunk_size_changes_no_bit():
    logits_NV, targets_N, weights_2N = _inputs()

    def with_chunk(size):
        def function(values_NV):
            return vocab_parallel_logprob_entropy(values_NV, targets_N, group=None, vocab_size=VOCAB, chunk_tokens=size)

        return (*function(logits_NV), _gradient(function, logits_NV, (0, 1), weights_2N))

    whole = with_chunk(1024)
    for size in (1, 2, 4, 9):
        assert all(torch.equal(one, other) for one, other in zip(with_chunk(size), whole, strict=True))


def test_leading_dimensions_are_kept_and_targets_may_be_transposed():
    logits_NV, targets_N, _ = _inputs()
    flat = vocab_parallel_logprob_entropy(logits_NV, targets_N, group=None, vocab_size=VOCAB)
    targets_SB = targets_N.view(3, 3).T.contiguous().T
    shaped = vocab_parallel_logprob_entropy(logits_NV.view(3, 3, PADDED), targets_SB, group=None, vocab_size=VOCAB)
    assert all(torch.equal(one, other.view(3, 3)) for one, other in zip(shaped, flat, strict=True))


def test_a_target_outside_the_vocabulary_is_nan_and_its_row_can_be_masked_out():
    logits_NV, targets_N, _ = _inputs()
    targets_N[0], targets_N[1] = -100, VOCAB
    leaf_NV = logits_NV.clone().requires_grad_()
    logprobs_N, entropy_N = vocab_parallel_logprob_entropy(leaf_NV.clone(), targets_N, group=None, vocab_size=VOCAB)
    assert logprobs_N.isnan().tolist() == [True, True] + [False] * 7
    assert entropy_N.isfinite().all()
    logprobs_N[2:].sum().backward()
    assert not leaf_NV.grad[:2].any()
    assert leaf_NV.grad.isfinite().all()


def test_a_second_backward_is_refused():
    logits_NV, targets_N, _ = _inputs()
    logprobs_N, entropy_N = vocab_parallel_logprob_entropy(
        logits_NV.requires_grad_().clone(), targets_N, group=None, vocab_size=VOCAB
    )
    logprobs_N.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="the first one overwrote the logits with their gradient"):
        entropy_N.sum().backward()


def test_another_reader_of_the_overwritten_logits_is_refused():
    logits_NV, targets_N, _ = _inputs()
    activation_NV = logits_NV.requires_grad_().clone()
    logprobs_N, _ = vocab_parallel_logprob_entropy(activation_NV, targets_N, group=None, vocab_size=VOCAB)
    other = activation_NV.square().sum()
    logprobs_N.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


class _Allocations(TorchDispatchMode):
    """Elements of the largest tensor an operation made that shares no memory with `logits`."""

    def __init__(self, logits):
        super().__init__()
        self.own, self.largest = logits.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(output, torch.Tensor) and output.untyped_storage().data_ptr() != self.own:
                self.largest = max(self.largest, output.untyped_storage().nbytes() // output.element_size())
        return result


@pytest.mark.parametrize("fp32", [True, False])
def test_no_second_tensor_of_the_size_of_the_logits_is_made(fp32):
    num_tokens, vocab, chunk = 64, 50, 4
    logits_NV = torch.randn(num_tokens, vocab + 3).bfloat16().requires_grad_().clone()
    targets_N = torch.randint(0, vocab, (num_tokens,))
    with _Allocations(logits_NV) as allocations:
        logprobs_N, entropy_N = vocab_parallel_logprob_entropy(
            logits_NV, targets_N, group=None, vocab_size=vocab, chunk_tokens=chunk, fp32=fp32
        )
        (gradient_NV,) = torch.autograd.grad((logprobs_N + entropy_N).sum(), logits_NV)
    assert gradient_NV.data_ptr() == logits_NV.data_ptr()
    assert num_tokens <= allocations.largest <= chunk * (vocab + 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.long)}, "targets \\(3,\\) do not match"),
        ({"vocab_size": 41}, "1 ranks x 40 columns cannot hold a vocabulary of 41"),
        ({"logits": torch.zeros(PADDED, NUM_TOKENS).T}, "must be contiguous"),
        ({"logits": torch.zeros(NUM_TOKENS, PADDED, requires_grad=True)}, "must not be a leaf"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_misuse_is_refused(change, message):
    arguments = {
        "logits": torch.zeros(NUM_TOKENS, PADDED),
        "targets": torch.zeros(NUM_TOKENS, dtype=torch.long),
        "group": None,
        "vocab_size": VOCAB,
    }
    with pytest.raises(ValueError, match=message):
        vocab_parallel_logprob_entropy(**(arguments | change))
