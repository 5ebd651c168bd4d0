"""TensorRT-LLM: processes of its own on the trainer's GPUs, which hand their memory over between rollouts."""

from collections.abc import Iterator
from dataclasses import replace

from nemo_simplerl.config.rules.engines.trtllm import discards_weights
from nemo_simplerl.config.schema import RolloutConfig
from nemo_simplerl.plan.engines.base import Cache, Footprint, cache_bytes_per_token, engine_weights, wider_sizes
from nemo_simplerl.plan.layout import EngineSettings, Layout


class _Trtllm:
    """The footprint of rollout.engine=trtllm; see Footprint."""

    keys: tuple[str, ...] = (
        "rollout.trtllm.tensor_parallel_size",
        "rollout.trtllm.max_batch_size",
        "rollout.trtllm.free_gpu_memory_fraction",
        "rollout.trtllm.sleep",
        "rollout.trtllm.engine_args",
    )
    process_bytes = 3 * 2**30  # an estimate: another CUDA context, CUDA graphs, the forward pass
    refit_buckets = 1  # the one that its process reads

    def settings(self, rollout: RolloutConfig) -> EngineSettings:
        own = rollout.trtllm
        return EngineSettings(
            name="trtllm",
            tensor=own.tensor_parallel_size,
            batch=own.max_batch_size,
            cache_fraction=own.free_gpu_memory_fraction,
            sleeps=own.sleep,
            keeps_weights=not discards_weights(own.engine_args),
        )

    def workspace(self, layout: Layout) -> int:
        return 0

    def cache(self, layout: Layout, free_at_start: int, free_at_rollout: int) -> Cache:
        """A cache of its share of the memory that is free when it starts, which it takes for good."""
        per_token = cache_bytes_per_token(layout)
        size = max(0, int(free_at_start * _fraction(layout)))
        tokens = size // per_token
        sequences = min(layout.engine.batch, tokens // (layout.prompt_tokens + layout.response_tokens))
        return Cache(bytes_per_token=per_token, bytes=size, tokens=tokens, sequences=sequences)

    def between_rollouts(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        return {} if layout.engine.sleeps else {"engine weights": weights, "engine KV cache": cache.bytes}

    def before_refit(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        """Weights and KV cache: the engine allocates its cache when it starts and first releases it after a rollout, so
        the first refit of a new or resumed run finds it there."""
        return {"engine weights": weights, "engine KV cache": cache.bytes}

    def in_host_memory(self, layout: Layout) -> dict[str, int]:
        engine = layout.engine
        return {"sleeping engine's weights": engine_weights(layout)} if engine.sleeps and engine.keeps_weights else {}

    def changes(self, layout: Layout) -> Iterator[tuple[str, Layout]]:
        engine = layout.engine
        for step in range(int(_fraction(layout) * 20) - 1, 1, -1):
            less = replace(engine, cache_fraction=step / 20)
            yield f"rollout.trtllm.free_gpu_memory_fraction={step / 20:g}", replace(layout, engine=less)
        if not engine.sleeps:
            yield "rollout.trtllm.sleep=true", replace(layout, engine=replace(engine, sleeps=True))
        for size in wider_sizes(layout):
            wider = replace(engine, tensor=size)
            yield f"rollout.trtllm.tensor_parallel_size={size}", replace(layout, engine=wider)


def _fraction(layout: Layout) -> float:
    assert layout.engine.cache_fraction is not None
    return layout.engine.cache_fraction


FOOTPRINT: Footprint = _Trtllm()
