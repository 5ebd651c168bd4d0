"""One step of decoding: the next token of every row, operation by operation or as one graph.

Shapes: B rows of a batch, T steps, V vocabulary ids.
"""

import inspect
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from nemo_simplerl.rollout.hf.fixed_cache import FixedShapeCache
from nemo_simplerl.rollout.hf.kv_cache import SharedPromptCache

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # logits [B, V] and draws [B] to tokens and log-probabilities
# Takes down what a function launches, without running it, and returns what launches it all at once.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Steps:
    """Decoding steps that launch their operations one by one. Rows that have ended leave at once.

    positions_B: of each row's first new token. uniforms_BT: float64 draws in [0, 1).
    """

    ended_share = 0.0  # of the rows, that may have ended and wait for others to leave with them

    def __init__(self, model: PreTrainedModel, cache: SharedPromptCache, draw: Draw, positions_B: Tensor, uniforms_BT):
        self._model, self._cache, self._draw = model, cache, draw
        self._positions_B, self._uniforms_BT = positions_B, uniforms_BT

    def after(self, tokens_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities [B] that follow `tokens_B`, which were sampled in `step`, counted from 0."""
        self._cache.open_column()
        logits_BV = self._logits(tokens_B, self._positions_B + step)
        return self._draw(logits_BV, self._uniforms_BT[:, step + 1])

    def drop(self, ended_B: np.ndarray) -> np.ndarray:
        """Remove ended rows; returns the old slot of each row that is left, in the new order."""
        num_left = int((~ended_B).sum())
        holes = np.flatnonzero(ended_B[:num_left])
        movers = num_left + np.flatnonzero(~ended_B[num_left:])
        slots_B = np.arange(num_left)
        slots_B[holes] = movers
        device = self._positions_B.device
        self._cache.keep(torch.from_numpy(movers).to(device), torch.from_numpy(holes).to(device), num_left)
        kept = torch.from_numpy(slots_B).to(device)
        self._positions_B, self._uniforms_BT = self._positions_B[kept], self._uniforms_BT[kept]
        return slots_B

    def _logits(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row."""
        return self._model(
            input_ids=tokens_B[:, None],
            position_ids=positions_B[:, None],
            **as_cache(self._model, self._cache),
            use_cache=True,
            rollout_cache=self._cache,
        ).logits[:, -1]


class GraphedSteps(Steps):
    """Decoding steps that are captured once and then launched whole, for as long as their shapes last.

    A GPU computes a step of few rows faster than a host launches its operations, more than a thousand. Rows that have
    ended are computed on until a quarter has: fewer rows are other shapes, and so another graph.
    """

    ended_share = 0.25

    def __init__(
        self,
        model: PreTrainedModel,
        cache: FixedShapeCache,
        draw: Draw,
        positions_B: Tensor,
        uniforms_BT: Tensor,
        capture: Capture,
    ):
        super().__init__(model, cache, draw, positions_B, uniforms_BT)
        self._cache: FixedShapeCache = cache
        self._capture = capture
        self._generation: int | None = None  # of the cache, that `_replay` is a graph of
        self._replay: Callable[[], None] | None = None
        # What a graph reads and writes, where it always is.
        self._step = torch.zeros(1, dtype=torch.int64, device=positions_B.device)
        self._tokens_B = self._logprobs_B = torch.empty(0)

    def after(self, tokens_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See Steps.after."""
        self._cache.open_column()
        self._step.fill_(step)
        if self._cache.generation != self._generation:
            # The first step of a shape runs as it is: kernels load and libraries choose theirs outside of a graph.
            self._generation, self._replay = self._cache.generation, None
            self._tokens_B = tokens_B.clone()
            self._logprobs_B = tokens_B.new_empty(tokens_B.shape, dtype=torch.float32)
            self._run()
        else:
            self._replay = self._replay or self._capture(self._run)
            self._replay()
        return self._tokens_B, self._logprobs_B

    def _run(self) -> None:
        """The step, from `_tokens_B` to `_tokens_B`. No number of it may come from the host."""
        self._cache.at_column(self._step)
        logits_BV = self._logits(self._tokens_B, self._positions_B + self._step)
        tokens_B, logprobs_B = self._draw(logits_BV, self._uniforms_BT.index_select(1, self._step + 1)[:, 0])
        self._tokens_B.copy_(tokens_B)
        self._logprobs_B.copy_(logprobs_B)


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture what `work` launches as a CUDA graph: see Capture. Raises RuntimeError where CUDA cannot."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads, such as the one that writes checkpoints, use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    except RuntimeError as error:
        raise RuntimeError(
            f"the hf engine's decoding step could not be captured as a CUDA graph: {error}. "
            "Set rollout.cuda_graphs=false to launch its operations one by one."
        ) from error
    return graph.replay


def as_cache(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """The argument of `model` that takes a cache: `cache` in transformers 5, `past_key_values` before."""
    name = "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
    return {name: cache}
