"""Keys and values of one batch while it is decoded: one copy for each prompt, one row for each response.

The samples of a prompt attend to one copy of it, as queries of one product: less memory to read, which is
what decoding waits for. Responses start in column 0, so a step writes one column and reads a slice. A row
that has ended is overwritten by the last running row: the batch stays dense and a step costs what its running
rows cost. When half of the rows have ended their memory is given back, and that of prompts no row needs.

Shapes: P prompts, S most running samples of a prompt, B running rows, H key-value heads, G query heads a key-value
head, L prompt columns (some of them padding), T response columns in use, C allocated, D head size.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nemo_simplerl.parallel.products import product, scores

ATTENTION = "nemo_simplerl_shared_prompt"
# The store grows by doubling: long responses pay for their length and short ones do not.
FIRST_COLUMNS = 128


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, rollout_cache=None, **kwargs):
    """transformers' attention hook: SDPA for whole prompts, `attend` where a cache is passed."""
    if rollout_cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return rollout_cache.attend(module.layer_idx, query, scaling), None


# A model chooses its attention by name.
ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)


def padding_mask(pad_P: Tensor, num_columns: int, dtype: torch.dtype, *, first: int = 0) -> Tensor:
    """Additive mask [P, 1, 1, L]: the lowest finite number in `pad_P` columns of a row from `first` on, 0 elsewhere.

    Finite, because a query that sees nothing must not become NaN: padding is computed and thrown away.
    """
    columns = torch.arange(num_columns, device=pad_P.device)
    is_padding_PL = (columns >= first) & (columns < first + pad_P[:, None])
    mask_PL = torch.zeros(is_padding_PL.shape, dtype=dtype, device=pad_P.device)
    return mask_PL.masked_fill_(is_padding_PL, torch.finfo(dtype).min)[:, None, None]


class SharedPromptCache(Cache):
    """A transformers Cache of the responses, with the prompts beside it."""

    def __init__(
        self,
        prompts: list[tuple[Tensor, Tensor]],
        mask: Tensor,
        prompt_of_B: Tensor,
        max_columns: int,
        first_columns: int = FIRST_COLUMNS,
    ):
        """prompts: each layer's keys and values [P, H, L, D]; mask: additive, [P, 1, 1, L].

        prompt_of_B: each row's prompt. At most `max_columns` tokens a response are ever held; memory for
        `first_columns` of them is allocated at once.
        """
        super().__init__(layers=[])
        self._prompts = prompts
        self._mask = mask
        self._num_columns = 0
        self._max_columns = max_columns
        keys = prompts[0][0]
        shape = (2, len(prompt_of_B), keys.shape[1], min(max_columns, first_columns), keys.shape[-1])
        self._store = [self._memory(keys, shape) for _ in prompts]  # of each layer, keys and values: [2, B, H, C, D]
        self._seat(prompt_of_B)

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values, in use or not."""
        tensors = self._store + [tensor for layer in self._prompts for tensor in layer]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def open_column(self) -> None:
        """Make room for the next token of every row: `update` then writes there."""
        self._num_columns += 1
        if self._num_columns > self._store[0].shape[-2]:
            self._reallocate(min(self._max_columns, 2 * self._store[0].shape[-2]))

    def update(self, key_states, value_states, layer_idx, *_, **__) -> tuple[Tensor, Tensor]:
        """Write a layer's new column [B, H, 1, D], as transformers calls it. `attend` reads it from the store.

        What a version of transformers passes beyond these three is for caches of other kinds.
        """
        columns = slice(self._num_columns - 1, self._num_columns)
        keys, values = self._store[layer_idx][:, : len(key_states), :, columns]
        return keys.copy_(key_states), values.copy_(value_states)

    def attend(self, layer_idx: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of one query a row, [B, H * G, 1, D], over its prompt and response: [B, 1, H * G, D].

        One softmax in float32 over both parts. On a GPU the scores are float32 too; elsewhere they are rounded to the
        dtype of the query, as transformers rounds them everywhere.
        """
        num_rows, num_heads, _, size = query.shape
        prompt_keys, prompt_values = (tensor.flatten(0, 1) for tensor in self._prompts[layer_idx])
        keys, values = self._store[layer_idx][:, :num_rows].flatten(1, 2)[:, :, : self._columns_read]
        prompt_columns = prompt_keys.shape[1]
        # A row's heads are rows of their own from here on: N = B * H.
        groups = num_heads * num_rows // len(keys)
        query_NGD = (query * scaling).view(-1, groups, size)
        of_prompt = scores(self._mask_of_heads, self._by_prompt(query_NGD), prompt_keys.transpose(1, 2))
        of_response = self._scores_of_response(query_NGD, keys.transpose(1, 2))
        whole = torch.cat([self._by_row(of_prompt, groups), of_response], dim=-1)
        probs = whole.softmax(-1, dtype=torch.float32).to(query.dtype)
        of_prompt = torch.bmm(self._by_prompt(probs[..., :prompt_columns]), prompt_values)
        mixed = torch.baddbmm(self._by_row(of_prompt, groups), probs[..., prompt_columns:], values)
        return mixed.view(num_rows, 1, num_heads, size)

    @property
    def _columns_read(self) -> int:
        """Response columns that `attend` reads."""
        return self._num_columns

    def _scores_of_response(self, query: Tensor, keys: Tensor) -> Tensor:
        return product(query, keys)

    def _memory(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory for keys and values that are still to come."""
        return like.new_empty(shape)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._mask.shape[-1] + self._num_columns

    def keep(self, movers: Tensor, holes: Tensor, num_rows: int) -> None:
        """Drop all rows but the first `num_rows`, after copying the rows `movers` over the rows `holes`."""
        if len(holes):
            for store in self._store:
                store[:, holes, :, : self._num_columns] = store[:, movers, :, : self._num_columns]
            self._prompt_of_B[holes] = self._prompt_of_B[movers]
            self._flat_BH[holes] = self._flat_BH[movers]
        self._prompt_of_B, self._flat_BH = self._prompt_of_B[:num_rows], self._flat_BH[:num_rows]
        if 2 * num_rows <= self._store[0].shape[1]:
            self._drop_prompts()
            self._reallocate(self._store[0].shape[-2])

    def _seat(self, prompt_of_B: Tensor) -> None:
        """Assign each row a slot among the queries of its prompt."""
        num_prompts, heads = len(self._mask), self._store[0].shape[2]
        is_same_BB = prompt_of_B[:, None] == prompt_of_B
        slot_of_B = is_same_BB.tril(-1).sum(1)
        self._num_slots = int(slot_of_B.max()) + 1
        head_H = torch.arange(heads, device=prompt_of_B.device)
        self._prompt_of_B = prompt_of_B
        self._flat_BH = (prompt_of_B[:, None] * heads + head_H) * self._num_slots + slot_of_B[:, None]
        self._mask_of_heads = self._mask.expand(num_prompts, heads, 1, -1).flatten(0, 1)

    def _drop_prompts(self) -> None:
        """Free the keys and values of prompts that no row needs."""
        is_needed, prompt_of_B = self._prompt_of_B.unique(return_inverse=True)
        self._mask = self._mask[is_needed]
        for layer, (keys, values) in enumerate(self._prompts):
            self._prompts[layer] = keys[is_needed], values[is_needed]
        self._seat(prompt_of_B)

    def _reallocate(self, num_columns: int) -> None:
        """Allocate for the running rows and this many columns, layer by layer: at most one layer exists twice."""
        for layer, old in enumerate(self._store):
            used = old[:, : len(self._prompt_of_B), :, : self._num_columns]
            self._store[layer] = self._memory(used, (*used.shape[:3], num_columns, used.shape[-1]))
            self._store[layer][..., : used.shape[-2], :] = used

    def _by_prompt(self, rows_NGX: Tensor) -> Tensor:
        """Rows as the queries of their prompts, [P * H, S * G, X]; zeros where no row runs."""
        _, groups, size = rows_NGX.shape
        num_prompt_heads = len(self._mask_of_heads)
        grid = rows_NGX.new_zeros(num_prompt_heads * self._num_slots, groups, size)
        return grid.index_copy_(0, self._flat_BH.view(-1), rows_NGX).view(num_prompt_heads, -1, size)

    def _by_row(self, grid: Tensor, groups: int) -> Tensor:
        """The inverse of `_by_prompt`."""
        rows = grid.view(-1, groups, grid.shape[-1])
        return rows.index_select(0, self._flat_BH.view(-1))
