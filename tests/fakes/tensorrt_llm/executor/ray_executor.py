import asyncio
import os
import re
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroupSchedulingStrategy,
    get_current_placement_group,
    placement_group,
)

from tensorrt_llm._ray_utils import unwrap_ray_errors
from tensorrt_llm.executor.ray_gpu_worker import RayGPUWorker, RayWorkerWrapper
from tensorrt_llm.sampling_params import SamplingParams

# The real workers inherit these and hang, or join a launch that is not theirs.
_BREAKS_WORKERS = re.compile(
    r"(OMPI|PMI|PMIX|SLURM|TORCHELASTIC)_.*|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT"
)


class RayExecutor:
    def __init__(self, worker_kwargs: dict, model_world_size: int, postproc_worker_config, is_llm_executor, tp_size=1):
        if inherited := sorted(filter(_BREAKS_WORKERS.fullmatch, os.environ)):
            raise RuntimeError(f"the double: workers would inherit {', '.join(inherited)} and hang")
        os.environ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
        self._pending: list[tuple[list[int], SamplingParams, asyncio.Future]] = []
        self._is_shutdown = False
        self.has_start_local_cluser = False
        runtime_env = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
        ray_init_args = {
            "include_dashboard": False,
            "namespace": "trtllm",
            "ignore_reinit_error": True,
            "runtime_env": runtime_env,
        }
        if os.environ.get("TLLM_RAY_FORCE_LOCAL_CLUSTER", "0") != "1":
            raise RuntimeError("the double: this would attach to any Ray cluster that it finds")
        ray.init(address="local", **ray_init_args)
        self.has_start_local_cluser = True
        self.world_size = model_world_size
        self.tp_size = tp_size
        self.master_address = ray.util.get_node_ip_address()
        self.worker_kwargs = dict(
            **worker_kwargs, postproc_worker_config=postproc_worker_config, is_llm_executor=is_llm_executor
        )
        if not self.worker_kwargs["llm_args"].ray_placement_config.defer_workers_init:
            raise NotImplementedError("the double: workers are made by setup_async alone")
        self.workers: list | None = []

    def create_workers(self, worker_cls, worker_kwargs) -> None:
        runtime_env = ray.runtime_env.RuntimeEnv()
        runtime_env["env_vars"] = os.environ.copy()
        runtime_env["env_vars"].update({"TLLM_DISABLE_MPI": "1", "MASTER_ADDR": self.master_address})
        if get_current_placement_group() is not None:
            raise NotImplementedError("the double: a placement group of the caller's")
        self.placement_group = placement_group([{"GPU": self.tp_size, "CPU": self.tp_size}], strategy="PACK")
        self.workers = [
            RayWorkerWrapper.options(
                num_gpus=1.0,
                runtime_env=runtime_env,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self.placement_group, placement_group_bundle_index=0
                ),
            ).remote(worker_cls, worker_kwargs, self.world_size, rank)
            for rank in range(self.world_size)
        ]

    async def init_workers_async(self) -> None:
        self.create_workers(RayGPUWorker, self.worker_kwargs)
        try:
            await asyncio.gather(*[worker.__ray_ready__.remote() for worker in self.workers])
        except ray.exceptions.ActorDiedError as e:
            raise RuntimeError("RayGPUWorker died during initialization") from e
        port = await self.workers[0].setup_tcp_store.remote()
        await asyncio.gather(*[worker.setup_distributed_env_and_worker.remote(port=port) for worker in self.workers])

    @unwrap_ray_errors()
    def collective_rpc(
        self,
        method: str,
        args: tuple = (),
        kwargs: dict | None = None,
        non_block: bool = False,
        unique_reply_rank: int | None = None,
    ) -> list[Any]:
        workers = (self.workers[unique_reply_rank],) if unique_reply_rank is not None else self.workers
        kwargs = kwargs or {}
        refs = []
        for w in workers:
            try:
                refs.append(getattr(w, method).remote(*args, **kwargs))
            except AttributeError:
                refs.append(w.call_worker_method.remote(method, *args, **kwargs))
        return refs if non_block else ray.get(refs)

    @unwrap_ray_errors()
    async def collective_rpc_async(
        self, method: str, args: tuple = (), kwargs: dict | None = None, unique_reply_rank: int | None = None
    ) -> list[Any]:
        refs = self.collective_rpc(method, args, kwargs, non_block=True, unique_reply_rank=unique_reply_rank)
        return await asyncio.gather(*refs)

    async def setup_engine_remote_async(self) -> list:
        if not self.workers:
            raise RuntimeError("Workers must be initialized before calling setup_engine_remote_async")
        return await self.collective_rpc_async("setup_engine")

    def submit(self, token_ids: list[int], params: SamplingParams) -> asyncio.Future:
        """The request joins those of this turn of the event loop; all of them make one batch."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self._pending:
            loop.call_soon(lambda: setattr(self, "_task", loop.create_task(self._serve())))
        self._pending.append((token_ids, params, future))
        return future

    async def _serve(self) -> None:
        batch, self._pending = self._pending, []
        try:
            outputs = await self.workers[0].submit.remote([(ids, params) for ids, params, _ in batch])
        except ray.exceptions.RayActorError:
            return  # as in the real one, where a dead worker's requests are waited for without end
        except Exception as error:
            outputs = [error] * len(batch)
        for (_, _, future), output in zip(batch, outputs, strict=True):
            if not future.done():
                (future.set_exception if isinstance(output, Exception) else future.set_result)(output)

    def is_shutdown(self) -> bool:
        return self._is_shutdown

    def shutdown(self) -> None:
        if self._is_shutdown:
            return
        self._is_shutdown = True
        if self.workers:
            try:
                ray.get([worker.shutdown.remote() for worker in self.workers], timeout=30.0)
            except Exception as e:
                print(f"Error shutting down: {e}")
        self.workers = None
        if self.has_start_local_cluser and ray.is_initialized():
            ray.shutdown()
