"""A preallocated key-value cache of left-padded rows, and the attention of one new token over it.

Every row's newest token lies in the same column, so a step writes one column and reads a slice. A row that has ended
is overwritten by the last running row: the batch stays dense and a step costs what its running rows cost.
Shapes: B running rows, H key-value heads, L columns, D head size.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "nemo_simplerl_grouped"
_MIN_NEW_COLUMNS = (
    256  # the store grows by doubling, so that long responses pay for their length and short ones do not
)


def _grouped_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """SDPA, with the query heads that share a key-value head treated as its queries when one token is decoded.

    The stock function repeats the whole cache once per query head instead.
    """
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    batch, heads, _, size = query.shape
    groups = key.shape[1]
    output = scaled_dot_product_attention(
        query.reshape(batch, groups, heads // groups, size),
        key,
        value,
        attn_mask=attention_mask,
        scale=scaling,
    )
    return output.reshape(batch, 1, heads, size), None


# A model chooses its attention by name.
ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _grouped_attention)


def padding_mask(pad_B: Tensor, num_columns: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, 1, L]: the lowest finite number in the first `pad_B` columns of a row, 0 elsewhere.

    Finite, because a query that sees nothing must not become NaN: padding rows are computed and thrown away.
    """
    is_padding_BL = torch.arange(num_columns, device=pad_B.device) < pad_B[:, None]
    mask_BL = torch.zeros(is_padding_BL.shape, dtype=dtype, device=pad_B.device)
    return mask_BL.masked_fill_(is_padding_BL, torch.finfo(dtype).min)[:, None, None]


class PaddedKvCache(Cache):
    """Keys and values of all layers in one tensor [layers, 2, B, H, L, D], with the rows that still run in front."""

    def __init__(
        self, pad_B: Tensor, num_layers: int, prompt_columns: int, max_columns: int, dtype: torch.dtype
    ):
        """pad_B: columns of padding in front of each row's prompt. At most `max_columns` are ever held."""
        super().__init__(layers=[])
        self._num_layers = num_layers
        self._num_rows = len(pad_B)
        self._num_columns = prompt_columns
        self._max_columns = max_columns
        self._mask = padding_mask(pad_B, max_columns, dtype) if bool((pad_B > 0).any()) else None
        self._store: Tensor | None = None
        self._views: list[tuple[Tensor, Tensor]] = []

    @property
    def mask(self) -> Tensor | None:
        """Additive mask [B, 1, 1, columns held]; None where no row has padding."""
        return None if self._mask is None else self._mask[: self._num_rows, ..., : self._num_columns]

    def fill(self, first_row: int, source_B: Tensor, prefilled: Cache) -> None:
        """Copy prompts computed in `prefilled` into the rows from `first_row` on; row i takes its row source_B[i]."""
        for index, layer in enumerate(prefilled.layers):
            if self._store is None:
                self._allocate(layer.keys)
            rows = slice(first_row, first_row + len(source_B))
            for kind, tensor in enumerate((layer.keys, layer.values)):
                self._store[index, kind, rows, :, : self._num_columns] = tensor[source_B]

    def open_column(self) -> None:
        """Make room for the next token of every row: `update` then writes there."""
        self._num_columns += 1
        if self._num_columns > self._store.shape[-2]:
            self._grow()

    def update(self, key_states, value_states, layer_idx, cache_kwargs=None) -> tuple[Tensor, Tensor]:
        """transformers' hook: write a layer's new column, answer all its columns."""
        keys, values = self._views[layer_idx]
        columns = self._num_columns
        keys[:, :, columns - 1 : columns] = key_states
        values[:, :, columns - 1 : columns] = value_states
        return keys[:, :, :columns], values[:, :, :columns]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._num_columns

    def keep(self, movers: Tensor, holes: Tensor, num_rows: int) -> None:
        """Drop all rows but the first `num_rows`, after copying the rows `movers` over the rows `holes`."""
        if len(holes):
            columns = self._num_columns
            self._store[:, :, holes, :, :columns] = self._store[:, :, movers, :, :columns]
            if self._mask is not None:
                self._mask[holes] = self._mask[movers]
        self._num_rows = num_rows
        self._set_views()

    def _allocate(self, like: Tensor) -> None:
        _, heads, _, size = like.shape
        columns = min(self._max_columns, self._num_columns + _MIN_NEW_COLUMNS)
        self._store = like.new_empty(self._num_layers, 2, self._num_rows, heads, columns, size)
        self._set_views()

    def _grow(self) -> None:
        old = self._store[:, :, : self._num_rows]
        columns = min(self._max_columns, 2 * old.shape[-2])
        self._store = old.new_empty(*old.shape[:-2], columns, old.shape[-1])
        self._store[..., : old.shape[-2], :] = old
        self._set_views()

    def _set_views(self) -> None:
        self._views = [(layer[0, : self._num_rows], layer[1, : self._num_rows]) for layer in self._store]
