"""The limit that step.py measures training against: the matrix work of a step and little else, in bare PyTorch.

Packed rows without padding; the output projection for the responses' tokens alone; no PPO, no metrics, no clipping of
gradients. A reference and a value pass over the rollout, then the updates of both models. It does not generate.

Legend: P tokens of a row, N of them predict a response's token, H heads or groups, D head size.
"""

import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import work
from torch import Tensor, nn

TOKENS = 2048  # of a row


@dataclass(frozen=True)
class Row:
    tokens_P: Tensor
    positions_P: Tensor
    lengths: list[int]
    predicts_N: Tensor  # where a response's token is predicted


def main(model: str, variant: str, num_prompts: str) -> None:
    turns = work.Turns()
    given = work.work_of(model, variant, int(num_prompts))
    shape = given.shape
    torch.manual_seed(0)
    actor, reference, critic = Qwen2(shape, shape.vocab_size), Qwen2(shape, shape.vocab_size), Qwen2(shape, 1)
    spans = [(len(prompt), length) for prompt, length in zip(given.prompt_of, given.lengths, strict=True)]
    rollout = rows_of(spans, shape.vocab_size)
    updates = [
        rows_of(spans[first : first + work.UPDATE], shape.vocab_size) for first in range(0, len(spans), work.UPDATE)
    ]
    learners = [
        (loss, torch.optim.AdamW(net.parameters(), lr=work.LEARNING_RATE, fused=True))
        for loss, net in ((negative_logprob(actor), actor), (squared_value(critic), critic))
    ]
    turns.ready()
    while turns.begin():
        began = time.perf_counter()
        with torch.no_grad():
            for row in rollout:
                negative_logprob(reference)(row)
                critic(row)
        passed = time.perf_counter()
        for loss, optimizer in learners:
            for update in updates:
                optimizer.zero_grad(set_to_none=False)
                for row in update:
                    loss(row).backward()
                optimizer.step()
        turns.end(passes=passed - began, updates=time.perf_counter() - passed)


def rows_of(spans: list[tuple[int, int]], vocab_size: int) -> list[Row]:
    """(prompt, response) lengths, first into the first row that has room."""
    rows: list[list[tuple[int, int]]] = []
    for span in sorted(spans, key=sum, reverse=True):
        place = next((row for row in rows if sum(map(sum, row)) + sum(span) <= TOKENS), None)
        if place is None:
            rows.append([span])
        else:
            place.append(span)
    return [row_of(row, vocab_size) for row in rows]


def row_of(spans: list[tuple[int, int]], vocab_size: int) -> Row:
    lengths = [sum(span) for span in spans]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    predicts = [
        torch.arange(start + prompt - 1, start + prompt + response - 1)
        for start, (prompt, response) in zip(starts, spans, strict=True)
    ]
    return Row(
        tokens_P=torch.randint(4, vocab_size, (sum(lengths),)),
        positions_P=torch.cat([torch.arange(length) for length in lengths]),
        lengths=lengths,
        predicts_N=torch.cat(predicts),
    )


def negative_logprob(net: "Qwen2"):
    return lambda row: F.cross_entropy(net(row), row.tokens_P[row.predicts_N + 1], reduction="sum")


def squared_value(net: "Qwen2"):
    return lambda row: net(row).square().sum()


class Qwen2(nn.Module):
    """Logits or values, [N, outputs]."""

    def __init__(self, shape: work.Shape, num_outputs: int):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=1e-6)
        self.output = nn.Linear(shape.hidden_size, num_outputs, bias=False)
        size = shape.hidden_size // shape.num_heads
        self.register_buffer("frequencies", 1e4 ** (-torch.arange(0, size, 2) / size))

    def forward(self, row: Row) -> Tensor:
        angles_PD = (row.positions_P[:, None] * self.frequencies).repeat(1, 2)
        cos_P1D, sin_P1D = angles_PD.cos()[:, None], angles_PD.sin()[:, None]
        hidden = self.embedding(row.tokens_P)
        for layer in self.layers:
            hidden = layer(hidden, cos_P1D, sin_P1D, row.lengths)
        return self.output(self.norm(hidden[row.predicts_N]))


class Layer(nn.Module):
    def __init__(self, shape: work.Shape):
        super().__init__()
        size = shape.hidden_size
        head_size = size // shape.num_heads
        self.sizes = [shape.num_heads * head_size, shape.num_groups * head_size, shape.num_groups * head_size]
        self.head_size = head_size
        self.norms = nn.ModuleList(nn.RMSNorm(size, eps=1e-6) for _ in range(2))
        self.qkv = nn.Linear(size, sum(self.sizes))
        self.projection = nn.Linear(size, size, bias=False)
        self.up = nn.Linear(size, 2 * shape.ffn_size, bias=False)
        self.down = nn.Linear(shape.ffn_size, size, bias=False)

    def forward(self, hidden: Tensor, cos_P1D: Tensor, sin_P1D: Tensor, lengths: list[int]) -> Tensor:
        query, key, value = (
            part.unflatten(1, (-1, self.head_size)) for part in self.qkv(self.norms[0](hidden)).split(self.sizes, dim=1)
        )
        query, key = (part * cos_P1D + half_turned(part) * sin_P1D for part in (query, key))
        parts = zip(*(part.transpose(0, 1)[None].split(lengths, dim=2) for part in (query, key, value)), strict=True)
        mixed = [F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
        hidden = hidden + self.projection(torch.cat(mixed, dim=2)[0].transpose(0, 1).flatten(1))
        gate, up = self.up(self.norms[1](hidden)).chunk(2, dim=1)
        return hidden + self.down(F.silu(gate) * up)


def half_turned(part: Tensor) -> Tensor:
    first, second = part.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


if __name__ == "__main__":
    main(*sys.argv[1:])
