"""Logits split over two and four ranks give what one rank with all of them does."""

import torch
import torch.distributed as dist

from nemo_simplerl.parallel.vocab import vocab_parallel_logprob_entropy
from ranks import run_ranks

# Four ranks of 12 columns: rank 2 holds 5 columns of vocabulary and 7 of padding, rank 3 only padding.
NUM_TOKENS, VOCAB, PADDED = 11, 29, 48


def _logprob_entropy_gradient(logits_NV, group):
    generator = torch.Generator().manual_seed(1)
    targets_N = torch.randint(0, VOCAB, (NUM_TOKENS,), generator=generator)
    weights_2N = torch.randn(2, NUM_TOKENS, generator=generator)
    leaf_NV = logits_NV.clone().requires_grad_()
    outputs = vocab_parallel_logprob_entropy(
        leaf_NV.clone(), targets_N, group=group, vocab_size=VOCAB, temperature=0.7, chunk_tokens=4
    )
    (weights_2N * torch.stack(outputs)).sum().backward()
    return *(output.detach() for output in outputs), leaf_NV.grad


def _logits() -> torch.Tensor:
    return 3 * torch.randn(NUM_TOKENS, PADDED, generator=torch.Generator().manual_seed(0))


def _on_every_group() -> list[tuple]:
    dist.init_process_group("gloo")
    answers = []
    for group in (dist.new_subgroups(group_size=2)[0], dist.group.WORLD):
        shard_NV = _logits().chunk(group.size(), dim=1)[group.rank()].contiguous()
        answers.append(_logprob_entropy_gradient(shard_NV, group))
    return answers


def test_two_and_four_ranks_equal_one():
    dense_logprobs_N, dense_entropy_N, dense_gradient_NV = _logprob_entropy_gradient(_logits(), None)
    assert dense_logprobs_N.isfinite().all()
    per_rank = run_ranks(_on_every_group, 4)
    for ranks, answers in (((0, 1), [a[0] for a in per_rank[:2]]), (range(4), [a[1] for a in per_rank])):
        for _, (logprobs_N, entropy_N, _) in zip(ranks, answers, strict=True):
            assert torch.equal(logprobs_N, answers[0][0])
            torch.testing.assert_close(logprobs_N, dense_logprobs_N, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(entropy_N, dense_entropy_N, atol=1e-5, rtol=1e-5)
        gradient_NV = torch.cat([answer[2] for answer in answers], dim=1)
        torch.testing.assert_close(gradient_NV, dense_gradient_NV, atol=1e-5, rtol=1e-5)
