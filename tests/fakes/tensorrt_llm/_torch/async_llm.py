from typing import Any

from tensorrt_llm.llmapi.llm import LLM
from tensorrt_llm.llmapi.llm_args import RayPlacementConfig


class AsyncLLM(LLM):
    def __init__(
        self,
        placement_groups: list[Any] | None = None,
        placement_bundle_indices: list[list[int]] | None = None,
        per_worker_gpu_share: float | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        kwargs["orchestrator_type"] = "ray"
        kwargs["ray_placement_config"] = RayPlacementConfig(
            defer_workers_init=True,
            placement_groups=placement_groups,
            placement_bundle_indices=placement_bundle_indices,
            per_worker_gpu_share=per_worker_gpu_share,
        )
        kwargs["allreduce_strategy"] = "NCCL"
        kwargs.setdefault("ray_worker_extension_cls", "tensorrt_llm.llmapi.rlhf_utils.WorkerExtension")
        super().__init__(*args, **kwargs)
        self._async_initialized = False

    async def setup_async(self):
        if not self._async_initialized:
            await self._executor.init_workers_async()
            await self._executor.setup_engine_remote_async()
            self._async_initialized = True
        return self

    def __await__(self):
        return self.setup_async().__await__()

    async def release(self, tags: list[str]):
        await self.collective_rpc("sleep", args=(tags,))

    async def resume(self, tags: list[str]):
        await self.collective_rpc("wakeup", args=(tags,))

    async def update_weights(self, weights: dict[str, str] | None):
        await self.collective_rpc("update_weights", args=(weights,))

    async def collective_rpc(
        self, method: str, args: tuple = (), kwargs: dict | None = None, unique_reply_rank: int | None = None
    ) -> list:
        return await self._executor.collective_rpc_async(method, args, kwargs, unique_reply_rank=unique_reply_rank)
