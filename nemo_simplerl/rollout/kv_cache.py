"""Keys and values of one batch while it is decoded: each prompt's once, each response's in a row of its own.

The samples of a prompt attend to one copy of it, as queries of one product: less memory to read, which is
what decoding waits for. Responses start in column 0, so a step writes one column and reads a slice. A row
that has ended is overwritten by the last running row: the batch stays dense and a step costs what its running
rows cost.

Shapes: P prompts, S most samples of a prompt, B running rows, H key-value heads, G query heads a key-value
head, L prompt columns (prompts are padded on the left), T response columns, D head size.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "nemo_simplerl_shared_prompt"
# The store grows by doubling: long responses pay for their length and short ones do not.
_FIRST_COLUMNS = 128


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, rollout_cache=None, **kwargs):
    """transformers' attention hook: SDPA for whole prompts, `attend` where a cache is handed through."""
    if rollout_cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return rollout_cache.attend(module.layer_idx, query, scaling), None


# A model chooses its attention by name.
ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)


def padding_mask(pad_P: Tensor, num_columns: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [P, 1, 1, L]: the lowest finite number in the first `pad_P` columns of a row, 0
    elsewhere.

    Finite, because a query that sees nothing must not become NaN: padding is computed and thrown away.
    """
    is_padding_PL = torch.arange(num_columns, device=pad_P.device) < pad_P[:, None]
    mask_PL = torch.zeros(is_padding_PL.shape, dtype=dtype, device=pad_P.device)
    return mask_PL.masked_fill_(is_padding_PL, torch.finfo(dtype).min)[:, None, None]


class SharedPromptCache(Cache):
    """transformers' Cache of the responses, with the prompts beside it."""

    def __init__(self, prompts: list[tuple[Tensor, Tensor]], mask: Tensor, prompt_of_B: Tensor, max_columns: int):
        """prompts: each layer's keys and values [P, H, L, D]; mask: additive, [P, 1, 1, L].

        prompt_of_B: each row's prompt, ascending. At most `max_columns` tokens a response are ever held.
        """
        super().__init__(layers=[])
        self._prompts = prompts
        self._mask = mask
        self._prompt_of_B = prompt_of_B
        self._slot_of_B = torch.arange(len(prompt_of_B), device=prompt_of_B.device) - torch.searchsorted(
            prompt_of_B, prompt_of_B
        )
        self._num_slots = int(self._slot_of_B.max()) + 1
        self._num_columns = 0
        self._max_columns = max_columns
        _, heads, _, size = prompts[0][0].shape
        first_columns = min(max_columns, _FIRST_COLUMNS)
        self._store = prompts[0][0].new_empty(len(prompts), 2, len(prompt_of_B), heads, first_columns, size)
        self._set_views()

    def open_column(self) -> None:
        """Make room for the next token of every row: `update` then writes there."""
        self._num_columns += 1
        if self._num_columns > self._store.shape[-2]:
            self._grow()

    def update(self, key_states, value_states, layer_idx, cache_kwargs=None) -> tuple[Tensor, Tensor]:
        """transformers' hook: write a layer's new column [B, H, 1, D], answer all its columns."""
        keys, values = self._views[layer_idx]
        columns = self._num_columns
        keys[:, :, columns - 1 : columns] = key_states
        values[:, :, columns - 1 : columns] = value_states
        return keys[:, :, :columns], values[:, :, :columns]

    def attend(self, layer_idx: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of one query a row, [B, H * G, 1, D], over its prompt and response: [B, 1, H * G, D].

        One softmax in float32 over both parts.
        """
        num_rows, num_heads, _, size = query.shape
        prompt_keys, prompt_values = self._prompts[layer_idx]
        num_prompts, kv_heads, prompt_columns, _ = prompt_keys.shape
        groups = num_heads // kv_heads
        keys, values = (view[:, :, : self._num_columns] for view in self._views[layer_idx])

        query_BHGD = (query * scaling).view(num_rows, kv_heads, groups, size)
        prompt_scores = self._by_prompt(query_BHGD) @ prompt_keys.transpose(2, 3) + self._mask
        scores = torch.cat([self._by_row(prompt_scores, groups), query_BHGD @ keys.transpose(2, 3)], dim=-1)
        probs = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        of_prompt = self._by_row(self._by_prompt(probs[..., :prompt_columns]) @ prompt_values, groups)
        of_response = probs[..., prompt_columns:] @ values
        return (of_prompt + of_response).view(num_rows, 1, num_heads, size)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._mask.shape[-1] + self._num_columns

    def keep(self, movers: Tensor, holes: Tensor, num_rows: int) -> None:
        """Drop all rows but the first `num_rows`, after copying the rows `movers` over the rows `holes`."""
        if len(holes):
            columns = self._num_columns
            self._store[:, :, holes, :, :columns] = self._store[:, :, movers, :, :columns]
            self._prompt_of_B[holes] = self._prompt_of_B[movers]
            self._slot_of_B[holes] = self._slot_of_B[movers]
        self._prompt_of_B = self._prompt_of_B[:num_rows]
        self._slot_of_B = self._slot_of_B[:num_rows]
        self._set_views()

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """Rows [B, H, G, X] as the queries of their prompts, [P, H, S * G, X]; zeros where no row runs."""
        _, heads, groups, size = rows.shape
        grid = rows.new_zeros(len(self._mask), heads, self._num_slots, groups, size)
        grid[self._prompt_of_B, :, self._slot_of_B] = rows
        return grid.view(len(self._mask), heads, -1, size)

    def _by_row(self, grid: Tensor, groups: int) -> Tensor:
        """The inverse of `_by_prompt`."""
        num_prompts, heads, _, size = grid.shape
        return grid.view(num_prompts, heads, -1, groups, size)[self._prompt_of_B, :, self._slot_of_B]

    def _grow(self) -> None:
        old = self._store[:, :, : len(self._prompt_of_B)]
        columns = min(self._max_columns, 2 * old.shape[-2])
        self._store = old.new_empty(*old.shape[:-2], columns, old.shape[-1])
        self._store[..., : old.shape[-2], :] = old
        self._set_views()

    def _set_views(self) -> None:
        num_rows = len(self._prompt_of_B)
        self._views = [(layer[0, :num_rows], layer[1, :num_rows]) for layer in self._store]
