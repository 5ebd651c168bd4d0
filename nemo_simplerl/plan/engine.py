"""Memory of the rollout engine on one GPU, and how many sequences it holds at once. Bytes unless said otherwise."""

from dataclasses import dataclass

from nemo_simplerl.plan.layout import Layout
from nemo_simplerl.plan.shapes import head_dim, rank_parameters, vocab_rows

# Per sequence and vocabulary entry while the hf engine samples: logits, and probabilities in float32 and float64.
_SAMPLING_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The KV cache of one engine."""

    bytes_per_token: int  # on each GPU of the engine
    bytes: int  # on each GPU of the engine
    tokens: int  # that it holds
    sequences: int  # of the longest kind that run at once


def weights(layout: Layout) -> int:
    """Of the engine, on one GPU. Neither engine follows the trainer's tensor or pipeline sizes."""
    return rank_parameters(layout.shape, layout.engine_tensor) * layout.param_bytes


def workspace(layout: Layout) -> int:
    """Logits of one decoding step; TensorRT-LLM's are part of its process's own estimate."""
    if layout.engine == "trtllm":
        return 0
    return layout.engine_batch * vocab_rows(layout.shape, 1) * _SAMPLING_BYTES


def cache(layout: Layout, free_at_start: int, free_at_rollout: int) -> Cache:
    """Of an engine that finds `free_at_start` bytes when its weights are there, and `free_at_rollout` when it samples.

    TensorRT-LLM takes its share of the former for good; the hf engine takes what its batch needs of the latter.
    """
    shape = layout.shape
    groups = max(1, shape.num_query_groups // layout.engine_tensor)
    per_token = 2 * shape.num_layers * groups * head_dim(shape) * layout.param_bytes
    longest = layout.prompt_tokens + layout.response_tokens
    if layout.engine == "trtllm":
        size = max(0, int(free_at_start * layout.cache_fraction))
        tokens = size // per_token
        sequences = min(layout.engine_batch, tokens // longest)
        return Cache(bytes_per_token=per_token, bytes=size, tokens=tokens, sequences=sequences)
    batch = engine_batch(layout)
    needed = _hf_tokens(layout, batch)
    sequences = batch
    if needed * per_token > free_at_rollout:
        room = max(0, free_at_rollout) // per_token
        sequences = next((n for n in _halves(batch) if _hf_tokens(layout, n) <= room), 0)
    return Cache(bytes_per_token=per_token, bytes=needed * per_token, tokens=needed, sequences=sequences)


def engine_batch(layout: Layout) -> int:
    """Sequences that one engine is ever handed at once."""
    per_engine = -(-layout.samples * layout.engine_tensor // layout.cluster.world_size)
    return max(1, min(layout.engine_batch, per_engine))


def _hf_tokens(layout: Layout, sequences: int) -> int:
    """Prompts are held once for all their samples; one layer is copied while the cache grows."""
    prompts = -(-sequences // layout.samples_per_prompt)
    tokens = prompts * layout.prompt_tokens + sequences * layout.response_tokens
    return tokens + -(-sequences * layout.response_tokens // layout.shape.num_layers)


def _halves(number: int) -> list[int]:
    return [number >> shift for shift in range(number.bit_length())]
