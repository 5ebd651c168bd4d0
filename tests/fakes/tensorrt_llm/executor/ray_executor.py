import asyncio
import os
import re

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tensorrt_llm.executor.ray_gpu_worker import RayGPUWorker, RayWorkerWrapper
from tensorrt_llm.sampling_params import SamplingParams

# The real workers inherit these and hang, or join a launch that is not theirs.
_BREAKS_WORKERS = re.compile(
    r"(OMPI|PMI|PMIX|SLURM|TORCHELASTIC)_.*|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT"
)


class RayExecutor:
    def __init__(self, llm_args):
        if inherited := sorted(filter(_BREAKS_WORKERS.fullmatch, os.environ)):
            raise RuntimeError(f"the double: workers would inherit {', '.join(inherited)} and hang")
        os.environ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
        self._args = llm_args
        self.workers: list = []
        self._pending: list[tuple[list[int], SamplingParams, asyncio.Future]] = []
        self._is_shutdown = False
        init_args = {"include_dashboard": False, "namespace": "trtllm", "ignore_reinit_error": True}
        if os.environ.get("TLLM_RAY_FORCE_LOCAL_CLUSTER", "0") != "1":
            raise RuntimeError("the double: this would attach to any Ray cluster that it finds")
        ray.init(address="local", **init_args)

    async def init_workers_async(self) -> None:
        size = self._args.tensor_parallel_size
        group = placement_group([{"GPU": size, "CPU": size}], strategy="PACK")
        environment = os.environ | {"TLLM_DISABLE_MPI": "1"}
        self.workers = [
            RayWorkerWrapper.options(
                num_gpus=1,
                runtime_env={"env_vars": dict(environment)},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
            ).remote(RayGPUWorker, {"llm_args": self._args}, size, rank)
            for rank in range(size)
        ]
        await asyncio.gather(*[worker.__ray_ready__.remote() for worker in self.workers])

    async def setup_engine_remote_async(self) -> list:
        return await self.collective_rpc_async("setup_engine")

    def collective_rpc(self, method, args=(), kwargs=None, non_block=False, unique_reply_rank=None) -> list:
        workers = self.workers if unique_reply_rank is None else [self.workers[unique_reply_rank]]
        references = []
        for worker in workers:
            try:
                references.append(getattr(worker, method).remote(*args, **(kwargs or {})))
            except AttributeError:
                references.append(worker.call_worker_method.remote(method, *args, **(kwargs or {})))
        return references if non_block else ray.get(references)

    async def collective_rpc_async(self, method, args=(), kwargs=None, unique_reply_rank=None) -> list:
        references = self.collective_rpc(method, args, kwargs, non_block=True, unique_reply_rank=unique_reply_rank)
        return await asyncio.gather(*references)

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
            outputs = await self.workers[0].generate.remote([(ids, params) for ids, params, _ in batch])
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
        if not self._is_shutdown:
            self._is_shutdown = True
            self.workers = []
            ray.shutdown()
