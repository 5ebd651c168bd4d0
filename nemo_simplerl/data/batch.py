"""A rollout as tensors, and its division into micro-batches.

Legend: B samples, S padded length of prompt + response, T = S - 1 predicted tokens. Index t of a `_BT` tensor
is about the token `tokens_BS[:, t + 1]`, predicted from the tokens up to t. Rows are right-padded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


class Response(Protocol):
    """The part of a completion that `collate` reads; `logprobs` holds one number a token.

    Both may be NumPy arrays, which are copied as they are, or sequences of Python numbers.
    """

    @property
    def token_ids(self) -> Any: ...
    @property
    def logprobs(self) -> Any: ...
    @property
    def finish_reason(self) -> str: ...


@dataclass(frozen=True)
class Batch:
    """Prompts with their responses, one a row."""

    tokens_BS: Tensor  # int64, padding holds the pad id
    lengths_B: Tensor  # int64, prompt + response
    prompt_lengths_B: Tensor  # int64
    mask_BT: Tensor  # float32, 1 where the predicted token belongs to the response, its EOS included
    loss_mask_BT: Tensor  # float32, mask_BT without the truncated rows that training leaves out
    engine_logprobs_BT: Tensor  # float32, as the rollout engine reported them, 0 outside the mask
    engine_mask_BT: Tensor  # float32, mask_BT without the tokens that the engine never sampled
    scores_B: Tensor  # float32, the reward of the whole response
    groups_B: Tensor  # int64, the position of the row's prompt in the step; equal in all samples of one prompt
    truncated_B: Tensor  # bool, the response ended by length
    is_correct_B: Tensor  # bool, the response was graded as right

    @classmethod
    def of_no_rows(cls, device: torch.device | str) -> "Batch":
        """The batch of a rank that trains on no samples; S is 2 and T is 1."""
        no_tokens, no_rows = torch.zeros(0, 1, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        return cls(
            tokens_BS=no_rows.view(0, 2),
            **dict.fromkeys(("mask_BT", "loss_mask_BT", "engine_logprobs_BT", "engine_mask_BT"), no_tokens),
            **dict.fromkeys(("lengths_B", "prompt_lengths_B", "groups_B"), no_rows),
            scores_B=torch.zeros(0, device=device),
            **dict.fromkeys(("truncated_B", "is_correct_B"), no_rows > 0),
        )

    def __len__(self) -> int:
        return self.tokens_BS.shape[0]

    def select(self, rows: Sequence[int] | Tensor) -> "Batch":
        """A batch of these rows, in this order. The padded width stays."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.tokens_BS.device)
        return Batch(**{field.name: getattr(self, field.name)[index] for field in fields(Batch)})

    def micro_batches(self, size: int, **columns_BT: Tensor) -> list["MicroBatch"]:
        """Consecutive rows, `size` at a time (the last may be smaller), each cut to its own longest sequence.

        `columns_BT` are tensors [B, T] that travel with the rows. Raises ValueError for a size below 1.
        """
        if size < 1:
            raise ValueError(f"a micro-batch needs at least 1 sample, got a size of {size}")
        for name, column_BT in columns_BT.items():
            assert column_BT.shape == self.mask_BT.shape, (name, column_BT.shape, self.mask_BT.shape)
        return [self._cut(slice(start, start + size), columns_BT) for start in range(0, len(self), size)]

    def _cut(self, rows: slice, columns_BT: Mapping[str, Tensor]) -> "MicroBatch":
        length = int(self.lengths_B[rows].max())
        return MicroBatch(
            tokens_BS=self.tokens_BS[rows, :length],
            lengths_B=self.lengths_B[rows],
            prompt_lengths_B=self.prompt_lengths_B[rows],
            mask_BT=self.mask_BT[rows, : length - 1],
            loss_mask_BT=self.loss_mask_BT[rows, : length - 1],
            engine_logprobs_BT=self.engine_logprobs_BT[rows, : length - 1],
            engine_mask_BT=self.engine_mask_BT[rows, : length - 1],
            scores_B=self.scores_B[rows],
            groups_B=self.groups_B[rows],
            truncated_B=self.truncated_B[rows],
            is_correct_B=self.is_correct_B[rows],
            columns={name: column_BT[rows, : length - 1] for name, column_BT in columns_BT.items()},
            rows=torch.arange(len(self), device=self.tokens_BS.device)[rows],
            is_packed=False,
        )


@dataclass(frozen=True)
class MicroBatch(Batch):
    """Rows computed in one pass: no wider than their longest sequence, or one packed row (data.packing)."""

    columns: dict[str, Tensor]  # [B, T] each, by the name given with the cut
    rows: Tensor  # int64, of the batch, in the order of lengths_B
    is_packed: bool

    @property
    def sequences_BT(self) -> Tensor:
        """int64 [B, T]: the number of the sequence, in the order of lengths_B, that each predicted token is of."""
        numbers_B = torch.arange(len(self.lengths_B), device=self.lengths_B.device)
        if self.is_packed:
            return numbers_B.repeat_interleave(self.lengths_B, output_size=self.tokens_BS.shape[1])[None, :-1]
        return numbers_B[:, None].expand_as(self.mask_BT)


def collate(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Response],
    scores: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    is_correct: Sequence[bool] | None = None,
    pad_id: int,
    truncated: Literal["penalize", "mask"],
    overwrite_truncated_with_eos: int | None,
    device: torch.device | str,
) -> Batch:
    """Make a batch of one row a completion: row i is prompts[i] followed by completions[i].

    `groups`: the position of each row's prompt in the step; None, where no group is asked for, makes each row its own.
    `is_correct`: whether each was graded as right; None, where nothing is graded, makes none right.
    `truncated`: responses ended by length are trained as graded ("penalize") or left out of the losses
    ("mask"). `overwrite_truncated_with_eos`: an EOS id that takes the place of their last token, though the
    policy never sampled it (a quirk of the SimpleRL recipe); None leaves them alone. The engine has no
    log-probability for it: engine_mask_BT is 0 there. Raises ValueError for lists of different lengths, an
    empty list, prompt or completion, and for a completion whose log-probabilities do not match its tokens.
    """
    _check_rows(prompts, completions, scores)
    prompt_lengths = [len(prompt) for prompt in prompts]
    lengths = [len(prompt) + len(completion.token_ids) for prompt, completion in zip(prompts, completions, strict=True)]
    is_cut = [completion.finish_reason == "length" for completion in completions]

    tokens_BS = torch.full((len(prompts), max(lengths)), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros(len(prompts), max(lengths) - 1)
    engine_logprobs_BT, engine_mask_BT = torch.zeros_like(mask_BT), torch.zeros_like(mask_BT)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, end = prompt_lengths[row], lengths[row]
        tokens_BS[row, :start] = torch.tensor(prompt)
        tokens_BS[row, start:end] = torch.as_tensor(completion.token_ids)
        # The first response token stands at `start` and is predicted at start - 1, the last at end - 2.
        mask_BT[row, start - 1 : end - 1] = engine_mask_BT[row, start - 1 : end - 1] = 1.0
        engine_logprobs_BT[row, start - 1 : end - 1] = torch.as_tensor(completion.logprobs)
        if is_cut[row] and overwrite_truncated_with_eos is not None:
            tokens_BS[row, end - 1] = overwrite_truncated_with_eos
            engine_logprobs_BT[row, end - 2] = engine_mask_BT[row, end - 2] = 0.0

    truncated_B = torch.tensor(is_cut)
    loss_mask_BT = mask_BT * ~truncated_B[:, None] if truncated == "mask" else mask_BT
    return Batch(
        tokens_BS=tokens_BS.to(device),
        lengths_B=torch.tensor(lengths, device=device),
        prompt_lengths_B=torch.tensor(prompt_lengths, device=device),
        mask_BT=mask_BT.to(device),
        loss_mask_BT=loss_mask_BT.to(device),
        engine_logprobs_BT=engine_logprobs_BT.to(device),
        engine_mask_BT=engine_mask_BT.to(device),
        scores_B=torch.tensor([float(score) for score in scores], device=device),
        groups_B=torch.tensor(range(len(prompts)) if groups is None else groups, dtype=torch.int64, device=device),
        truncated_B=truncated_B.to(device),
        is_correct_B=torch.tensor(is_correct or [False] * len(prompts), device=device),
    )


def _check_rows(prompts: Sequence[Sequence[int]], completions: Sequence[Response], scores: Sequence[float]) -> None:
    if not len(prompts) == len(completions) == len(scores):
        raise ValueError(
            "a batch needs one prompt and one score for each completion, "
            f"got {len(prompts)} prompts, {len(completions)} completions and {len(scores)} scores; "
            "repeat a prompt for each of its samples"
        )
    if not prompts:
        raise ValueError("a batch needs at least one completion, got none")
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not prompt:
            raise ValueError(f"row {row} has an empty prompt; the first response token needs one token before it")
        if len(completion.token_ids) == 0:
            raise ValueError(
                f"row {row} has an empty completion; the engine must sample at least one token, if only EOS"
            )
        if len(completion.logprobs) != len(completion.token_ids):
            raise ValueError(
                f"row {row} has {len(completion.token_ids)} response tokens and {len(completion.logprobs)} "
                "log-probabilities; the engine must report one for each token"
            )
