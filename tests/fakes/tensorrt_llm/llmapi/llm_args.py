from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

try:
    from ray.util.placement_group import PlacementGroup
except ImportError:
    PlacementGroup = None


class StrictBaseModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KvCacheConfig(StrictBaseModel):
    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float | None = 0.9
    max_tokens: int | None = None
    tokens_per_block: int = 32


class CudaGraphConfig(StrictBaseModel):
    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False


class CapacitySchedulerPolicy(str, Enum):
    MAX_UTILIZATION = "MAX_UTILIZATION"
    GUARANTEED_NO_EVICT = "GUARANTEED_NO_EVICT"
    STATIC_BATCH = "STATIC_BATCH"


class SchedulerConfig(StrictBaseModel):
    capacity_scheduler_policy: CapacitySchedulerPolicy = CapacitySchedulerPolicy.GUARANTEED_NO_EVICT


class RayPlacementConfig(StrictBaseModel):
    defer_workers_init: bool = False
    placement_groups: list[Any] | None = None
    placement_bundle_indices: list[list[int]] | None = None
    per_worker_gpu_share: float | None = None


class BaseLlmArgs(StrictBaseModel):
    model: str
    tokenizer: Any = None
    tokenizer_mode: Literal["auto", "slow"] = "auto"
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    revision: str | None = None
    tokenizer_revision: str | None = None
    kv_cache_config: KvCacheConfig = Field(default_factory=KvCacheConfig)
    max_batch_size: int | None = 2048
    max_input_len: int | None = 1024
    max_seq_len: int | None = None
    max_num_tokens: int | None = 8192
    scheduler_config: SchedulerConfig = Field(default_factory=SchedulerConfig)
    orchestrator_type: Literal["rpc", "ray"] | None = None


class TorchLlmArgs(BaseLlmArgs):
    backend: Literal["pytorch"] = "pytorch"
    load_format: Literal["auto", "dummy", "vision_only"] = "auto"
    cuda_graph_config: CudaGraphConfig | None = Field(default_factory=CudaGraphConfig)
    sampler_type: Literal["TRTLLMSampler", "TorchSampler", "auto"] = "auto"
    enable_sleep: bool = False
    batch_wait_timeout_iters: int = Field(default=0, ge=0)
    batch_wait_max_tokens_ratio: float = Field(default=0, ge=0, le=1)
    allreduce_strategy: str = "AUTO"
    ray_worker_extension_cls: str | None = None
    ray_placement_config: RayPlacementConfig | None = None

    @model_validator(mode="after")
    def validate_ray(self):
        if self.ray_worker_extension_cls is not None and self.orchestrator_type != "ray":
            raise ValueError("ray_worker_extension_cls is only supported with orchestrator_type='ray'")
        return self
