"""The limit that step.py measures a step against: its matrix work and little else, in bare PyTorch.

Generation computes a prompt once for its samples, then a token a step for the responses that have not ended, against a
cache of keys and values; the next token is the most probable one. Training packs rows without padding, with the output
projection for the responses' tokens alone; no PPO, no metrics, no clipping of gradients. A reference and a value pass
over the rollout, then the updates of both models.

Legend: P tokens of a row, N of them predict a response's token, R responses (those not ended: A), S places of the
cache, K key-value groups, Q query heads a group, D head size.
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
    turns.ready(torch=torch.__version__)
    while turns.begin():
        begun = time.perf_counter()
        generate(actor, given)
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
        ended = time.perf_counter()
        turns.end(generation=began - begun, passes=passed - began, updates=ended - passed)


@torch.no_grad()
def generate(net: "Qwen2", given: work.Work) -> None:
    """Decode responses of the given lengths, the longest first, so that those not ended are the first rows."""
    prompts, n = given.prompts, work.SAMPLES_PER_PROMPT
    row = row_of([(len(prompt), 1) for prompt in prompts], net.output.out_features)
    tokens_P = torch.tensor([token for prompt in prompts for token in (*prompt, 0)])
    kept: list[tuple[Tensor, Tensor]] = []
    first = net(Row(tokens_P, row.positions_P, row.lengths, row.predicts_N), kept).argmax(1)

    order = sorted(range(len(given.lengths)), key=lambda index: -given.lengths[index])
    starts_R = torch.tensor([len(given.prompt_of[index]) for index in order])
    longest = max(map(len, prompts)) + max(given.lengths)
    caches = [[part.new_zeros(len(order), part.shape[1], longest, part.shape[2]) for part in pair] for pair in kept]
    for cache, pair in zip(caches, kept, strict=True):
        for cache_RKSD, part_PKD in zip(cache, pair, strict=True):
            of_prompt = part_PKD.split(row.lengths)
            for place, index in enumerate(order):
                size = len(prompts[index // n])
                cache_RKSD[place, :, :size] = of_prompt[index // n][:size].transpose(0, 1)

    tokens_R = first[torch.tensor([index // n for index in order])]
    for step in range(given.lengths[order[0]] - 1):
        alive = sum(length > step + 1 for length in given.lengths)
        tokens_R = net.next_tokens(tokens_R[:alive], starts_R[:alive] + step, caches)


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

    def forward(self, row: Row, kept: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Keys and values of each layer, [P, K, D], are appended to `kept`."""
        turn = self.rotary(row.positions_P)
        hidden = self.embedding(row.tokens_P)
        for layer in self.layers:
            hidden, key_PKD, value_PKD = layer(hidden, turn, row.lengths)
            if kept is not None:
                kept.append((key_PKD, value_PKD))
        return self.output(self.norm(hidden[row.predicts_N]))

    def next_tokens(self, tokens_A: Tensor, positions_A: Tensor, caches: list[list[Tensor]]) -> Tensor:
        """The tokens after these, whose keys and values are written to the caches."""
        turn = self.rotary(positions_A)
        seen_A11S = (torch.arange(int(positions_A.max()) + 1) <= positions_A[:, None])[:, None, None]
        hidden = self.embedding(tokens_A)
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer.decode(hidden, turn, cache, positions_A, seen_A11S)
        return self.output(self.norm(hidden)).argmax(1)

    def rotary(self, positions_P: Tensor) -> tuple[Tensor, Tensor]:
        angles_PD = (positions_P[:, None] * self.frequencies).repeat(1, 2)
        return angles_PD.cos()[:, None], angles_PD.sin()[:, None]


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

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor], lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.heads(hidden, turn)
        parts = zip(*(part.transpose(0, 1)[None].split(lengths, dim=2) for part in (query, key, value)), strict=True)
        mixed = [F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
        return self.mlp(hidden + self.projection(torch.cat(mixed, dim=2)[0].transpose(0, 1).flatten(1))), key, value

    def decode(
        self, hidden: Tensor, turn: tuple[Tensor, Tensor], cache: list[Tensor], positions_A: Tensor, seen_A11S: Tensor
    ) -> Tensor:
        query, *new = self.heads(hidden, turn)
        alive, width = torch.arange(len(positions_A)), seen_A11S.shape[-1]
        for cache_RKSD, part_AKD in zip(cache, new, strict=True):
            cache_RKSD[alive, :, positions_A] = part_AKD
        query_AKQD = query.unflatten(1, (new[0].shape[1], -1))  # a group's queries share its keys
        keys_AKSD, values_AKSD = (cache_RKSD[: len(alive), :, :width] for cache_RKSD in cache)
        mixed = F.scaled_dot_product_attention(query_AKQD, keys_AKSD, values_AKSD, attn_mask=seen_A11S)
        return self.mlp(hidden + self.projection(mixed.flatten(1)))

    def heads(self, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Queries, keys and values, [P, heads or groups, D]."""
        query, key, value = (
            part.unflatten(1, (-1, self.head_size)) for part in self.qkv(self.norms[0](hidden)).split(self.sizes, dim=1)
        )
        cos_P1D, sin_P1D = turn
        return [*(part * cos_P1D + half_turned(part) * sin_P1D for part in (query, key)), value]

    def mlp(self, hidden: Tensor) -> Tensor:
        gate, up = self.up(self.norms[1](hidden)).chunk(2, dim=1)
        return hidden + self.down(F.silu(gate) * up)


def half_turned(part: Tensor) -> Tensor:
    first, second = part.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


if __name__ == "__main__":
    main(*sys.argv[1:])
