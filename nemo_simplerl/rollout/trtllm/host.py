"""The leader's side of an engine: an `AsyncLLM` on a private Ray cluster, driven from code that does not await.

Only this module and worker import TensorRT-LLM. Every call has a limit: what does not answer within it is given up,
with the engine named, because nothing in TensorRT-LLM ends such a wait.
"""

import asyncio
import logging
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_simplerl.rollout.own_process.launch_environment import environment_of_its_own
from nemo_simplerl.rollout.trtllm.loop_thread import LoopThread, Overdue
from nemo_simplerl.rollout.trtllm.ray_cluster import is_death, start_ray, stop_ray
from nemo_simplerl.rollout.trtllm.releases import Release
from nemo_simplerl.rollout.trtllm.values import CACHE_TAGS, EVENT_LOOP_REPORT, sleep_tags

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds after which an engine counts as lost."""

    start: float = 1500.0  # workers, memory, CUDA graphs; gloo, in which the other ranks wait, gives up after 1800
    call: float = 300.0  # to release or restore memory, or to load one bucket of weights
    heartbeat: float = 15.0  # between two looks at the workers while they sample


class EngineHost:
    """One engine. `start` first, then any of the calls, `close` at last; all but `start` raise RuntimeError, naming the
    engine, when a worker has died or does not answer.

    name: of the engine, for messages.
    """

    def __init__(self, name: str, release: Release, limits: Limits):
        self._name, self._release, self._limits = name, release, limits
        self._loop: LoopThread | None = None
        self._llm: Any = None
        self._ray_folder: Path | None = None
        self._is_lost = False
        self._weight_tags: list[str] = []

    def start(self, arguments: dict[str, Any], num_workers: int, gpus: Sequence[int]) -> list[str]:
        """Start the cluster and the engine with these arguments of AsyncLLM; returns its workers' devices.

        gpus: numbers of those that the workers may see; none where they run on CPUs.
        """
        os.environ["TLLM_DISABLE_MPI"] = "1"  # read again while the engine runs
        with environment_of_its_own(
            TLLM_RAY_FORCE_LOCAL_CLUSTER="1",
            TRT_LLM_DISABLE_LOAD_WEIGHTS_IN_PARALLEL="1",  # copies one by one: less memory in a refit
            RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES="1",
            RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # nor of workers without GPUs, which Ray would warn of
            **({"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {}),
        ):
            self._ray_folder = start_ray(num_gpus=num_workers)
            self._loop = LoopThread("simplerl-trtllm")
            self._run("its start", self._build(arguments), self._limits.start)
        self.call("simplerl_watch_event_loop", str(self._ray_folder))
        return self.call("report_device_id")

    def call(self, method: str, *args: Any) -> list[Any]:
        """The result of a method of each worker, in rank order."""
        return self._run(f"its method {method}", self._llm.collective_rpc(method, args=args), self._limits.call)

    def update_weights(self, handles: dict[str, str] | None) -> None:
        """Load one bucket, or end the refit with None; the workers have read the bucket when this returns."""
        doing = "the end of a refit" if handles is None else "loading a bucket of weights"
        self._run(doing, self._llm.update_weights(handles), self._limits.call)

    def release(self, *, cache: bool) -> None:
        """Free all of the engine's memory; without `cache`, its KV cache is free already."""
        # Released blocks stay in the index of reusable prompts, and would be read after the next wake.
        self.call("simplerl_reset_prefix_cache")
        tags = [*self._weight_tags, *(CACHE_TAGS if cache else ())]
        self._run("releasing its memory", self._llm.release(tags), self._limits.call)

    def restore_weights(self) -> None:
        """Undo `release`, but for the KV cache."""
        self._run("restoring its memory", self._llm.resume(self._weight_tags), self._limits.call)

    def restore_cache(self) -> None:
        """Restore the KV cache's memory."""
        self._run("restoring its KV cache", self._llm.resume(list(CACHE_TAGS)), self._limits.call)

    def sample(self, requests: Sequence[tuple[list[int], dict[str, Any]]]) -> list[Any]:
        """TensorRT-LLM's outputs of prompts with arguments of its SamplingParams. Takes as long as it takes."""
        return self._run("a rollout", self._sample(requests), None)

    def close(self) -> None:
        """End workers and cluster. Harmless when closed."""
        llm, self._llm = self._llm, None
        folder, self._ray_folder = self._ray_folder, None
        loop, self._loop = self._loop, None
        try:
            if llm is not None and not self._is_lost:  # lost workers would be waited for
                llm.shutdown()
        finally:
            if loop is not None:
                loop.close()  # first: what it still did could start another cluster
            if folder is not None:
                stop_ray(folder)

    async def _build(self, arguments: dict[str, Any]) -> None:
        from tensorrt_llm import AsyncLLM

        types = import_module(self._release.memory_types).ExecutorMemoryType
        self._weight_tags = sleep_tags(tag.value for tag in types)
        await asyncio.sleep(0)  # nothing more starts when the imports took all of the time
        self._llm = AsyncLLM(**_with_classes(arguments))
        await self._llm.setup_async()

    async def _sample(self, requests: Sequence[tuple[list[int], dict[str, Any]]]) -> list[Any]:
        from tensorrt_llm import SamplingParams

        work = asyncio.gather(
            *[self._llm.generate_async(ids, SamplingParams(**_with_mode(given))) for ids, given in requests]
        )
        try:
            while not (await asyncio.wait({work}, timeout=self._limits.heartbeat))[0]:
                # Raises when a worker has died: the requests it held would be waited for without end.
                await asyncio.wait_for(self._llm.collective_rpc("report_device_id"), self._limits.call)
            return work.result()
        except asyncio.TimeoutError:
            raise Overdue("the workers' answer during a rollout") from None
        finally:
            work.cancel()  # nothing where it has ended
            await asyncio.gather(work, return_exceptions=True)

    def _run(self, doing: str, work: Coroutine[Any, Any, Any], limit_s: float | None) -> Any:
        assert self._loop is not None, "start comes first"
        try:
            return self._loop.run(work, limit_s)
        except Overdue as overdue:
            self._is_lost = True
            limit_s = limit_s or self._limits.call
            raise RuntimeError(
                f"{self._name} is lost: {str(overdue) or doing} did not come within {limit_s:g} s. Start the run "
                "again; docs/trtllm.md says where its workers' log is."
            ) from None
        except Exception as error:
            reasons = self._ended_loops()
            if not reasons and not is_death(error):
                raise
            self._is_lost = True
            why = "; ".join(reasons) or f"a worker process died ({str(error).strip().partition(chr(10))[0]})"
            raise RuntimeError(f"{self._name} is lost in {doing}: {why}. Start the run again.") from error

    def _ended_loops(self) -> list[str]:
        """What workers wrote before they ended themselves, see worker.py."""
        found = sorted(self._ray_folder.glob(f"{EVENT_LOOP_REPORT}*")) if self._ray_folder else []
        return [f"the event loop of worker {path.suffix[1:]} has ended: {path.read_text()}" for path in found]


def _with_classes(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with nested sections turned into the classes that AsyncLLM takes."""
    classes = {
        "kv_cache_config": "KvCacheConfig",
        "cuda_graph_config": "CudaGraphConfig",
        "scheduler_config": "SchedulerConfig",
        "sleep_config": "SleepConfig",
    }
    module = import_module("tensorrt_llm.llmapi.llm_args")
    return {
        key: getattr(module, classes[key])(**value) if key in classes and isinstance(value, dict) else value
        for key, value in arguments.items()
    }


def _with_mode(given: dict[str, Any]) -> dict[str, Any]:
    """A request's arguments, with the name of its log-probabilities' mode turned into the package's member."""
    if "logprobs_mode" not in given:
        return given
    modes = import_module("tensorrt_llm.sampling_params").LogprobMode
    return given | {"logprobs_mode": modes[given["logprobs_mode"]]}
