"""vLLM: a process of its own on each of the trainer's GPUs, which drops its weights and its cache between rollouts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nemo_simplerl.config.schema import RolloutConfig
from nemo_simplerl.plan.engines.base import Cache, Footprint, cache_bytes_per_token, engine_weights, wider_sizes
from nemo_simplerl.plan.layout import EngineSettings, Layout, halves

_GPU_PROCESS = 3 * 2**30  # an estimate: another CUDA context, CUDA graphs, the forward pass
_CPU_PROCESS = 800 * 2**20  # measured with a model of 0.9M parameters


class _Vllm:
    """The footprint of rollout.engine=vllm; see Footprint.

    On a GPU it sleeps at vLLM's level 2: neither weights nor cache stay, on the GPU or in host memory. On CPUs vLLM
    cannot sleep.
    """

    keys: tuple[str, ...] = (
        "rollout.vllm.tensor_parallel_size",
        "rollout.vllm.max_batch_size",
        "rollout.vllm.gpu_memory_utilization",
        "rollout.vllm.cpu_kv_cache_mb",
        "rollout.vllm.sleep",
    )
    process_bytes = _GPU_PROCESS
    refit_buckets = 1  # the one that its process copies from, into place

    def settings(self, rollout: RolloutConfig) -> EngineSettings:
        own = rollout.vllm
        return EngineSettings(
            name="vllm",
            tensor=own.tensor_parallel_size,
            batch=own.max_batch_size,
            cache_fraction=own.gpu_memory_utilization,
            cpu_cache_bytes=own.cpu_kv_cache_mb * 2**20,
            sleeps=own.sleep,
        )

    def workspace(self, layout: Layout) -> int:
        return _CPU_PROCESS if layout.cluster.gpu.is_cpu else 0

    def cache(self, layout: Layout, free_at_start: int, free_at_rollout: int) -> Cache:
        """What its share of the whole GPU leaves beside its weights and its own process, whoever has the rest."""
        per_token = cache_bytes_per_token(layout)
        if layout.cluster.gpu.is_cpu:
            size = layout.engine.cpu_cache_bytes
        else:
            size = max(0, int(layout.cluster.gpu.total * _share(layout)) - engine_weights(layout) - _GPU_PROCESS)
        tokens = size // per_token
        sequences = min(layout.engine.batch, tokens // (layout.prompt_tokens + layout.response_tokens))
        return Cache(bytes_per_token=per_token, bytes=size, tokens=tokens, sequences=sequences)

    def between_rollouts(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        if layout.engine.sleeps and not layout.cluster.gpu.is_cpu:
            return {}
        return self.before_refit(layout, weights, cache)

    def before_refit(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        """Weights, KV cache and its process: it starts with them, and first sleeps after a rollout."""
        held = {"engine weights": weights, "engine KV cache": cache.bytes}
        return held | {"engine sampling": self.workspace(layout)}

    def in_host_memory(self, layout: Layout) -> dict[str, int]:
        return {}

    def changes(self, layout: Layout) -> Iterator[tuple[str, Layout]]:
        engine = layout.engine
        if layout.cluster.gpu.is_cpu:
            for size in halves(engine.cpu_cache_bytes // 2**20):
                yield f"rollout.vllm.cpu_kv_cache_mb={size}", _with(layout, cpu_cache_bytes=size * 2**20)
            return
        for step in range(int(_share(layout) * 20) - 1, 1, -1):
            yield f"rollout.vllm.gpu_memory_utilization={step / 20:g}", _with(layout, cache_fraction=step / 20)
        if not engine.sleeps:
            yield "rollout.vllm.sleep=true", _with(layout, sleeps=True)
        for size in wider_sizes(layout):
            yield f"rollout.vllm.tensor_parallel_size={size}", _with(layout, tensor=size)


def _with(layout: Layout, **settings: Any) -> Layout:
    return replace(layout, engine=replace(layout.engine, **settings))


def _share(layout: Layout) -> float:
    assert layout.engine.cache_fraction is not None
    return layout.engine.cache_fraction


FOOTPRINT: Footprint = _Vllm()
