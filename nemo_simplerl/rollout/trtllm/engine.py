"""TensorRT-LLM 1.2 as the rollout engine. Only this module and worker import it.

Refitting a running engine works in 1.2 only through its Ray orchestrator, so one rank of each engine's group hosts an
`AsyncLLM` on a private Ray cluster, whose workers share the group's GPUs with the trainer. docs/trtllm.md draws it.
"""

import asyncio
import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from nemo_simplerl.config.schema import TrtllmConfig
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.rollout.base import Bucket, Completion, SamplingParams, check_request
from nemo_simplerl.rollout.expected_weights import Arrivals, ExpectedWeights
from nemo_simplerl.rollout.stopping import StopRule, TextDecoder
from nemo_simplerl.rollout.trtllm.handles import Staging, device_uuid, physical_index, return_cached_memory
from nemo_simplerl.rollout.trtllm.launch_environment import environment_of_its_own
from nemo_simplerl.rollout.trtllm.loop_thread import LoopThread
from nemo_simplerl.rollout.trtllm.ray_cluster import start_ray, stop_ray
from nemo_simplerl.rollout.trtllm.values import (
    cut_at_stops,
    llm_arguments,
    padding_bias,
    request_arguments,
    tokens_and_logprobs,
)
from nemo_simplerl.rollout.weight_state import WeightState

T = TypeVar("T")
log = logging.getLogger(__name__)

SUPPORTED = "1.2."
# All of the engine's memory but its KV cache. 1.2 keeps the weights in host memory while it sleeps and drops the cache.
WEIGHT_TAGS = [
    "sampler",
    "drafter",
    "guided_decoder",
    "spec_resource_manager",
    "model_extra",
    "executor_extra",
    "model",
    "draft_model",
]
CACHE_TAGS = ["kv_cache"]


@dataclass(frozen=True)
class RankDevice:
    """A rank's device, which the leader of an engine learns of every rank."""

    uuid: str
    index: int | None  # number of the GPU on its machine; None for a CPU
    host: str


class TrtllmEngine:
    """A RolloutEngine of one group of `settings.tensor_parallel_size` ranks, of which the first is the leader.

    Every method but `generate`, `invalidate` and `close` is collective over the group; `generate` belongs to the leader
    (see `generates`). The engine reads config.json only: its weights come from the first refit.

    device: this rank's; the engine's worker for it lives on the same one. dtype: of the engine's weights.
    tokenizer: decodes stop strings and the text of completions. max_model_len: longest prompt + response, tokens.
    group: of gloo; None is this rank alone. vocab_limit: ids from here on, padding rows of the embedding, are never
    sampled. heartbeat_s: seconds after which a dead worker is noticed.
    Raises ValueError before anything starts where TensorRT-LLM 1.2 or Ray is not installed.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        tokenizer: TextDecoder | None,
        device: torch.device,
        dtype: torch.dtype,
        max_model_len: int,
        settings: TrtllmConfig,
        group: dist.ProcessGroup | None,
        vocab_limit: int | None = None,
        heartbeat_s: float = 60.0,
    ):
        require_supported_version()
        self._tokenizer, self._device, self._group, self._settings = tokenizer, device, group, settings
        self._max_model_len, self._heartbeat_s = max_model_len, heartbeat_s
        self._expected = ExpectedWeights(model_path)
        self._vocab_limit = vocab_limit
        self._bias_V: torch.Tensor | None = None  # see _answers
        self._weight_state = WeightState()
        self._asleep, self._has_cache, self._closed = False, True, False
        self._loop: LoopThread | None = None
        self._llm: Any = None
        self._ray_folder: Path | None = None
        rank = 0 if group is None else group.rank()
        self.batch_size: int | None = None
        self.generates = rank == 0  # whether this rank is the leader
        self.sleeps_between_rollouts = True
        self._uuid = device_uuid(device, rank)
        self._together(lambda: return_cached_memory(device))
        devices = self._together(lambda: RankDevice(self._uuid, physical_index(device), socket.gethostname()))
        try:
            self._lead(lambda: self._start(llm_arguments(str(model_path), dtype, max_model_len, settings), devices))
        except BaseException:
            self.close()
            raise

    @property
    def weight_version(self) -> int | None:
        return self._weight_state.version

    def refit(self, buckets: Iterable[Bucket], version: int, *, digests: bool = False) -> dict[str, int]:
        """See RolloutEngine.refit; the digests are of what reached the workers' devices.

        TensorRT-LLM fuses and slices what it loads, so nothing of a weight's name and shape can be read back from it.
        """
        buckets = iter(buckets)
        try:
            self._require_awake()
            with self._weight_state.replacing(version):
                return self._transfer(buckets, digests)
        finally:
            for _ in buckets:
                pass

    def invalidate(self, reason: str) -> None:
        self._weight_state.invalidate(reason)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        """See RolloutEngine.generate. One request a sample, each with its seed.

        `params.stop` is applied to the responses that the engine returns. The engine itself stops at stop tokens only:
        it would look for a string as one of the many sequences of tokens that spell it.
        """
        if not self.generates:
            raise RuntimeError("this rank belongs to an engine that another rank hosts; generate on its first rank.")
        self._require_awake()
        version = self._weight_state.require()
        vocab_size = self._expected.vocab_size
        check_request(prompts, params, seeds, vocab_size=vocab_size, max_model_len=self._max_model_len)
        stop_rule = StopRule(params.stop, params.stop_token_ids, self._tokenizer, vocab_size)
        if not seeds:
            return []
        if not self._has_cache:
            self._run(self._llm.resume(CACHE_TAGS))
            self._has_cache = True
        answers = self._answers(prompts, params, seeds)
        lengths, stopped = cut_at_stops([tokens for tokens, _ in answers], stop_rule)
        return [
            Completion(
                token_ids=tuple(tokens[:length]),
                logprobs=tuple(logprobs[:length]),
                text=self._text(tokens[:length]),
                finish_reason="stop" if is_stopped else "length",
                weight_version=version,
                seed=seed,
            )
            for (tokens, logprobs), length, is_stopped, seed in zip(answers, lengths, stopped, seeds, strict=True)
        ]

    def _answers(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities of each sample, none with an id beyond the tokenizer's.

        Such ids are the padding of the embedding, which a pretrained model never samples. A bias against them is one
        tensor of the vocabulary's size a request, and TorchSampler copies all of them to the GPU in every step. So
        requests carry it only once such an id has come; what came with it is drawn again.
        """
        while True:
            requests = [
                (list(prompts[i // params.n]), request_arguments(params, seed, self._bias_V))
                for i, seed in enumerate(seeds)
            ]
            answers = [tokens_and_logprobs(output, params) for output in self._run(self._sample(requests))]
            largest, limit = max(max(tokens, default=0) for tokens, _ in answers), self._vocab_limit
            if limit is None or largest < limit or self._bias_V is not None:
                return answers
            log.warning(
                f"the model sampled id {largest}, and the tokenizer has {limit}: requests carry a bias against such "
                "ids from here on, which makes decoding slower"
            )
            self._bias_V = padding_bias(self._expected.vocab_size, limit)

    def sleep(self) -> None:
        """See RolloutEngine.sleep. With `settings.sleep` false the engine keeps its memory and only refuses to work."""
        if self._closed or self._asleep:
            return
        if self._settings.sleep:
            self._lead(self._release)
            self._has_cache = False
        self._asleep = True

    def wake(self) -> None:
        """See RolloutEngine.wake. The KV cache's memory comes back with the first request: a refit needs its room."""
        if self._closed or not self._asleep:
            return
        if self._settings.sleep:
            self._together(lambda: return_cached_memory(self._device))
            self._lead(lambda: self._run(self._llm.resume(WEIGHT_TAGS)))
        self._asleep = False

    def close(self) -> None:
        """See RolloutEngine.close. Ends the workers and the Ray cluster."""
        self._closed = True
        llm, self._llm = self._llm, None
        folder, self._ray_folder = self._ray_folder, None
        loop, self._loop = self._loop, None
        try:
            if llm is not None:
                llm.shutdown()
        finally:
            if loop is not None:
                loop.close()
            if folder is not None:
                stop_ray(folder)

    # Called on the leader.

    def _start(self, arguments: dict[str, Any], devices: Sequence[RankDevice]) -> None:
        if len({device.host for device in devices}) > 1:
            raise ValueError(
                f"the ranks of one engine are on {', '.join(device.host for device in devices)}; weights are handed "
                "over within one machine. Set rollout.trtllm.tensor_parallel_size to divide the ranks of each machine."
            )
        numbers = [str(device.index) for device in devices if device.index is not None]
        os.environ["TLLM_DISABLE_MPI"] = "1"  # read again while the engine runs
        with environment_of_its_own(
            TLLM_RAY_FORCE_LOCAL_CLUSTER="1",
            TRT_LLM_DISABLE_LOAD_WEIGHTS_IN_PARALLEL="1",  # copies one by one: less memory in a refit
            RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES="1",
            **({"CUDA_VISIBLE_DEVICES": ",".join(numbers)} if numbers else {}),
        ):
            self._ray_folder = start_ray(num_gpus=len(devices))
            self._loop = LoopThread("simplerl-trtllm")
            self._run(self._build(arguments))
        held, reported = sorted(device.uuid for device in devices), sorted(self._call("report_device_id"))
        if held != reported:
            raise RuntimeError(
                f"the engine's workers are on {reported}, but the ranks of its group hold {held}: weights could not be "
                "handed over. Start one rank a GPU, with the same CUDA_VISIBLE_DEVICES on all."
            )

    async def _build(self, arguments: dict[str, Any]) -> None:
        from tensorrt_llm import AsyncLLM

        self._llm = AsyncLLM(**_with_classes(arguments))
        await self._llm.setup_async()

    async def _sample(self, requests: Sequence[tuple[list[int], dict[str, Any]]]) -> list[Any]:
        from tensorrt_llm import SamplingParams as EngineParams

        work = asyncio.gather(*[self._llm.generate_async(ids, EngineParams(**given)) for ids, given in requests])
        try:
            while not (await asyncio.wait({work}, timeout=self._heartbeat_s))[0]:
                # Raises when a worker has died: the requests it held would be waited for without end.
                await self._llm.collective_rpc("report_device_id")
            return work.result()
        finally:
            work.cancel()  # nothing where it has ended
            await asyncio.gather(work, return_exceptions=True)

    def _release(self) -> None:
        # Released blocks stay in the index of reusable prompts, and would be read after the next wake.
        self._call("simplerl_reset_prefix_cache")
        self._run(self._llm.release(WEIGHT_TAGS + (CACHE_TAGS if self._has_cache else [])))

    def _call(self, method: str, *args: Any) -> list[Any]:
        """The result of a method of each worker, in rank order."""
        return self._run(self._llm.collective_rpc(method, args=args))

    def _run(self, work: Any) -> Any:
        assert self._loop is not None, "only the leader talks to the engine"
        return self._loop.run(work)

    # Called on every rank of the group.

    def _transfer(self, buckets: Iterable[Bucket], digests: bool) -> dict[str, int]:
        staging, arrivals = Staging(self._device), Arrivals(self._expected)
        landed: dict[str, int] = {}
        for bucket in buckets:
            arrivals.take(bucket)
            if not arrivals.problems:  # else nothing that is sent could make the refit good
                landed |= self._send(staging, bucket, digests)
            del bucket
        del staging
        return_cached_memory(self._device)
        arrivals.finish()
        self._lead(lambda: self._run(self._llm.update_weights(None)))
        return landed

    def _send(self, staging: Staging, bucket: Bucket, digests: bool) -> dict[str, int]:
        """Send one bucket to the workers; returns its digests, by name, when all have read it."""

        def handles() -> tuple[str, str | None]:
            staging.put(bucket)
            return staging.handles(), staging.handles() if digests else None

        every = dict(self._together(lambda: (self._uuid, handles())))

        def update() -> dict[str, int]:
            self._run(self._llm.update_weights({uuid: text for uuid, (text, _) in every.items()}))
            if not digests:
                return {}
            second = {uuid: text for uuid, (_, text) in every.items()}
            first, *others = self._call("simplerl_digests", second)
            if differing := [name for name in first if any(other[name] != first[name] for other in others)]:
                raise RuntimeError(f"the engine's workers received different tensors: {', '.join(differing[:5])}")
            return first

        return self._lead(update)

    def _lead(self, act: Callable[[], T]) -> T:
        """The result of the leader's `act()`, or its error, on every rank of the group. Collective."""
        return self._together(lambda: act() if self.generates else None)[0]  # type: ignore[return-value]

    def _together(self, act: Callable[[], T]) -> list[T]:
        """The results of every rank's `act()`, in rank order, on every rank of the group. Collective.

        Raises on every rank when one fails: its own error in a group of one rank, else RuntimeError.
        """
        answer: T | None = None
        error: Exception | None = None
        try:
            answer = act()
        except Exception as caught:  # raised below on every rank: the others would wait for this one without end
            error = caught
        if error is not None and (self._group is None or self._group.size() == 1):
            raise error
        answers = gather_objects((answer, None if error is None else f"{type(error).__name__}: {error}"), self._group)
        if failures := [f"rank {rank} of the engine's group: {text}" for rank, (_, text) in enumerate(answers) if text]:
            raise RuntimeError("; ".join(failures)) from error
        return cast(list[T], [value for value, _ in answers])

    def _require_awake(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed; make a new one.")
        if self._asleep:
            raise RuntimeError("the engine is asleep; call wake() first.")

    def _text(self, token_ids: list[int]) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode(token_ids, skip_special_tokens=True)


def engine_group(size: int) -> dist.ProcessGroup | None:
    """This rank's group of `size` consecutive ranks, None where that is this rank alone. Collective over the world."""
    if size == 1:
        return None
    mine = None
    for first in range(0, dist.get_world_size(), size):
        ranks = range(first, first + size)
        group = dist.new_group(list(ranks), backend="gloo")
        mine = group if dist.get_rank() in ranks else mine
    return mine


def require_supported_version() -> None:
    """Raises ValueError unless TensorRT-LLM 1.2 and Ray are installed. Imports neither."""
    try:
        version = metadata.version("tensorrt-llm")
    except metadata.PackageNotFoundError:
        raise ValueError(
            "rollout.engine=trtllm needs the package tensorrt-llm 1.2, which is not installed. Work in the container "
            "image, which has it, or set rollout.engine=hf."
        ) from None
    if not version.startswith(SUPPORTED):
        raise ValueError(
            f"rollout.engine=trtllm is written for tensorrt-llm 1.2, and {version} is installed: 1.0 and 1.1 cannot be "
            "refitted, 1.3 renamed the calls. Install 1.2.1, or set rollout.engine=hf."
        )
    if importlib.util.find_spec("ray") is None:
        raise ValueError("rollout.engine=trtllm needs the package ray, which tensorrt-llm does not bring: install it.")


def _with_classes(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with nested sections turned into the classes that AsyncLLM takes."""
    from tensorrt_llm.llmapi import CudaGraphConfig, KvCacheConfig

    classes = {"kv_cache_config": KvCacheConfig, "cuda_graph_config": CudaGraphConfig}
    return {
        key: classes[key](**value) if key in classes and isinstance(value, dict) else value
        for key, value in arguments.items()
    }
