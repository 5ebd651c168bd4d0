"""An output layer sharded over two and four ranks gives the results of one rank with the whole layer."""

import torch
import torch.distributed as dist

from nemo_simplerl.parallel.vocab import linear_logprob_entropy
from support.ranks import run_ranks

# Four ranks of 12 rows: rank 2 holds 5 rows of vocabulary and 7 of padding, rank 3 only padding.
NUM_TOKENS, HIDDEN, VOCAB, PADDED = 11, 5, 29, 48


def _outputs_and_gradients(weight_VH, group):
    generator = torch.Generator().manual_seed(1)
    targets_N = torch.randint(0, VOCAB, (NUM_TOKENS,), generator=generator)
    weights_2N = torch.randn(2, NUM_TOKENS, generator=generator)
    hidden_NH = torch.randn(NUM_TOKENS, HIDDEN, generator=generator, requires_grad=True)
    weight_VH = weight_VH.clone().requires_grad_()
    outputs = linear_logprob_entropy(
        hidden_NH, weight_VH, targets_N, group=group, vocab_size=VOCAB, temperature=0.7, tile=(4, 5)
    )
    (weights_2N * torch.stack(outputs)).sum().backward()
    return *(output.detach() for output in outputs), hidden_NH.grad, weight_VH.grad


def _weight() -> torch.Tensor:
    return torch.randn(PADDED, HIDDEN, generator=torch.Generator().manual_seed(0))


def _on_every_group() -> list[tuple]:
    dist.init_process_group("gloo")
    answers = []
    for group in (dist.new_subgroups(group_size=2)[0], dist.group.WORLD):
        shard_VH = _weight().chunk(group.size())[group.rank()].contiguous()
        answers.append(_outputs_and_gradients(shard_VH, group))
    return answers


def test_two_and_four_ranks_equal_one():
    logprobs_N, entropy_N, hidden_grad_NH, weight_grad_VH = _outputs_and_gradients(_weight(), None)
    assert logprobs_N.isfinite().all()
    per_rank = run_ranks(_on_every_group, 4)
    for answers in ([a[0] for a in per_rank[:2]], [a[1] for a in per_rank]):
        for answer in answers:
            assert torch.equal(answer[0], answers[0][0])
            torch.testing.assert_close(answer[0], logprobs_N, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(answer[1], entropy_N, atol=1e-5, rtol=1e-5)
        # Each rank has a part of the hidden states' gradient; the layer that gave every rank the hidden states sums it.
        torch.testing.assert_close(sum(answer[2] for answer in answers), hidden_grad_NH, atol=1e-5, rtol=1e-5)
        weight_grads = torch.cat([answer[3] for answer in answers])
        torch.testing.assert_close(weight_grads, weight_grad_VH, atol=1e-5, rtol=1e-5)
