"""A cache whose shapes and memory stay as they are over many steps, so that a graph of one step serves for the next.

Legend: see kv_cache.py; W columns that are read, a window of those allocated.
"""

import torch
from torch import Tensor

from nemo_simplerl.parallel.products import scores
from nemo_simplerl.rollout.hf.kv_cache import SharedPromptCache

WINDOW = 256  # columns; each further window is another graph, and half of one is read for nothing


class FixedShapeCache(SharedPromptCache):
    """A SharedPromptCache that is told its column by a tensor, and reads whole windows of columns, later ones masked.

    `generation` counts the changes of shapes and of memory: a graph of an earlier one must not be replayed.
    """

    window = WINDOW

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generation = 0

    def open_column(self) -> None:
        """See SharedPromptCache.open_column. `at_column` says which column that is where a step runs."""
        before = self._columns_read
        super().open_column()
        self.generation += self._columns_read != before

    def at_column(self, column: Tensor) -> None:
        """Write to this column, int64 [1], and attend to it and those before: the first part of a step."""
        dtype = self._store[0].dtype
        columns_W = torch.arange(self._columns_read, device=column.device)
        self._column = column
        self._mask_W = torch.where(columns_W <= column, 0.0, torch.finfo(dtype).min).to(dtype)

    def update(self, key_states, value_states, layer_idx, *_, **__) -> tuple[Tensor, Tensor]:
        """See SharedPromptCache.update."""
        rows = self._store[layer_idx][:, : len(key_states)]
        keys, values = rows.index_copy_(3, self._column, torch.stack((key_states, value_states)))
        return keys, values

    def keep(self, movers: Tensor, holes: Tensor, num_rows: int) -> None:
        """See SharedPromptCache.keep."""
        super().keep(movers, holes, num_rows)
        self.generation += 1

    @property
    def _columns_read(self) -> int:
        return min(-(-self._num_columns // self.window) * self.window, self._store[0].shape[-2])

    def _scores_of_response(self, query: Tensor, keys: Tensor) -> Tensor:
        return scores(self._mask_W, query, keys)

    def _memory(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        # A masked column weighs 0, and 0 times what lies in fresh memory may be NaN.
        return like.new_zeros(shape)
