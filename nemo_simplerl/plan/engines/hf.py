"""The embedded engine: transformers' model in the trainer's own process, awake from start to end."""

from collections.abc import Iterator
from dataclasses import replace

from nemo_simplerl.config.schema import RolloutConfig
from nemo_simplerl.plan.engines.base import Cache, Footprint, cache_bytes_per_token, sequences_at_once
from nemo_simplerl.plan.layout import EngineSettings, Layout, halves
from nemo_simplerl.plan.shapes import vocab_rows

# Per sequence and vocabulary entry while it samples: logits, and probabilities in float32 and float64.
_SAMPLING_BYTES = 16
_KERNELS = 55  # of a layer in a decoding step: 1,544 at 28 layers, counted


class _Hf:
    """The footprint of rollout.engine=hf; see Footprint."""

    keys: tuple[str, ...] = ("rollout.max_batch_size", "rollout.cuda_graphs")
    process_bytes = 0
    refit_buckets = 0  # it copies the trainer's tensors into place

    def settings(self, rollout: RolloutConfig) -> EngineSettings:
        return EngineSettings(
            name="hf",
            tensor=1,
            batch=rollout.max_batch_size,
            cache_fraction=None,
            sleeps=False,
            refills=False,
            kernels_a_layer=_KERNELS,
            is_graphed=rollout.cuda_graphs,
            batch_key="rollout.max_batch_size",
        )

    def workspace(self, layout: Layout) -> int:
        """Bytes of the logits of one decoding step."""
        return sequences_at_once(layout) * vocab_rows(layout.shape, 1) * _SAMPLING_BYTES

    def cache(self, layout: Layout, free_at_start: int, free_at_rollout: int) -> Cache:
        """The cache that its batch needs, or half a batch and less where the rollout has no room for that."""
        per_token = cache_bytes_per_token(layout)
        batch = sequences_at_once(layout)
        needed = _tokens(layout, batch)
        sequences = batch
        if needed * per_token > free_at_rollout:
            room = max(0, free_at_rollout) // per_token
            sequences = next((n for n in (batch, *_smaller(layout)) if _tokens(layout, n) <= room), 0)
        return Cache(bytes_per_token=per_token, bytes=needed * per_token, tokens=needed, sequences=sequences)

    def between_rollouts(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        return {"engine weights": weights}

    def before_refit(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        return {"engine weights": weights}

    def in_host_memory(self, layout: Layout) -> dict[str, int]:
        return {}

    def changes(self, layout: Layout) -> Iterator[tuple[str, Layout]]:
        for size in _smaller(layout):
            yield f"rollout.max_batch_size={size}", replace(layout, engine=replace(layout.engine, batch=size))


def _smaller(layout: Layout) -> Iterator[int]:
    """Half its batch, a quarter, ..., down to the samples of one prompt, which are never parted."""
    return (size for size in halves(sequences_at_once(layout)) if size >= layout.samples_per_prompt)


def _tokens(layout: Layout, sequences: int) -> int:
    """KV tokens of so many of the longest sequences.

    Prompts are held once for all their samples; one layer is copied while the cache grows.
    """
    prompts = -(-sequences // layout.samples_per_prompt)
    tokens = prompts * layout.prompt_tokens + sequences * layout.response_tokens
    return tokens + -(-sequences * layout.response_tokens // layout.shape.num_layers)


FOOTPRINT: Footprint = _Hf()
