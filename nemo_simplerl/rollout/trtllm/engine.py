"""TensorRT-LLM as the rollout engine, as the ranks that share one see it.

Refitting a running engine works only through its Ray orchestrator, so one rank of each engine's group hosts an
`AsyncLLM` on a private Ray cluster (host.py), whose workers share the group's GPUs with the trainer. docs/trtllm.md
draws it.
"""

import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_simplerl.config.rules.engines.trtllm import discards_weights
from nemo_simplerl.config.schema import TrtllmConfig
from nemo_simplerl.rollout.base import Bucket, SamplingParams, check_request
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.expected_weights import Arrivals, ExpectedWeights
from nemo_simplerl.rollout.own_process.answers import completions_of
from nemo_simplerl.rollout.own_process.engine_group import EngineGroup
from nemo_simplerl.rollout.own_process.handles import Staging, device_uuid, physical_index, return_cached_memory
from nemo_simplerl.rollout.stopping import StopRule, TextDecoder
from nemo_simplerl.rollout.trtllm.contract import installed_source, missing_of_ray
from nemo_simplerl.rollout.trtllm.host import EngineHost, Limits
from nemo_simplerl.rollout.trtllm.releases import Release, installed_release
from nemo_simplerl.rollout.trtllm.values import (
    llm_arguments,
    logprobs_mode,
    padding_bias,
    request_arguments,
    tokens_and_logprobs,
)
from nemo_simplerl.rollout.weight_state import WeightState

log = logging.getLogger(__name__)


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
    sampled. limits: how long the engine's processes may take.
    Raises ValueError before anything starts where no release of TensorRT-LLM that is known here is installed, or no Ray
    that it can use.
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
        limits: Limits | None = None,
    ):
        self._release = usable_release()
        self._tokenizer, self._device, self._settings = tokenizer, device, settings
        self._max_model_len, self._group = max_model_len, EngineGroup(group)
        self._sampler = self._release.sampler(settings.sampler_type)
        self._expected = ExpectedWeights(model_path)
        self._vocab_limit = vocab_limit
        self._bias_V: torch.Tensor | None = None  # see _answers
        self._weight_state = WeightState()
        self._asleep, self._has_cache, self._closed = False, True, False
        arguments = llm_arguments(str(model_path), dtype, max_model_len, settings, self._release)
        self._forgets = settings.sleep and discards_weights(arguments)
        self.batch_size: int | None = None
        self.generates = self._group.leads
        self.sleeps_between_rollouts = True
        self._uuid = device_uuid(device, self._group.rank)
        self._host = EngineHost(_name_of(group), self._release, limits or Limits())
        self._group.together(lambda: return_cached_memory(device))
        devices = self._group.together(lambda: RankDevice(self._uuid, physical_index(device), socket.gethostname()))
        try:
            self._group.lead(lambda: self._start(arguments, devices))
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

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]) -> Completions:
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
            return Completions.of([])
        if not self._has_cache:
            self._host.restore_cache()
            self._has_cache = True
        answers = self._answers(prompts, params, seeds)
        return completions_of(answers, seeds, stop_rule, self._tokenizer, version)

    def _answers(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities of each sample, none with an id beyond the tokenizer's.

        Such ids are the padding of the embedding, which a pretrained model never samples. A bias against them is one
        tensor of the vocabulary's size a request, and TorchSampler copies all of them to the GPU in every step. So
        requests carry it only once such an id has come; what came with it is drawn again.
        """
        mode = logprobs_mode(params, self._sampler, self._release)
        while True:
            requests = [
                (list(prompts[i // params.n]), request_arguments(params, seed, self._bias_V, mode))
                for i, seed in enumerate(seeds)
            ]
            answers = [tokens_and_logprobs(output, params) for output in self._host.sample(requests)]
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
            self._group.lead(lambda: self._host.release(cache=self._has_cache))
            self._has_cache = False
        self._asleep = True

    def wake(self) -> None:
        """See RolloutEngine.wake. The KV cache's memory comes back with the first request: a refit needs its room."""
        if self._closed or not self._asleep:
            return
        if self._settings.sleep:
            self._group.together(lambda: return_cached_memory(self._device))
            self._group.lead(self._host.restore_weights)
        self._asleep = False
        if self._forgets:
            self._weight_state.invalidate("its weights were discarded while it slept")

    def close(self) -> None:
        """See RolloutEngine.close. Ends the workers and the Ray cluster."""
        self._closed = True
        self._host.close()

    def _start(self, arguments: dict[str, Any], devices: Sequence[RankDevice]) -> None:
        if len({device.host for device in devices}) > 1:
            raise ValueError(
                f"the ranks of one engine are on {', '.join(device.host for device in devices)}; weights are handed "
                "over within one machine. Set rollout.trtllm.tensor_parallel_size to divide the ranks of each machine."
            )
        gpus = [device.index for device in devices if device.index is not None]
        reported = sorted(self._host.start(arguments, len(devices), gpus))
        if (held := sorted(device.uuid for device in devices)) != reported:
            raise RuntimeError(
                f"the engine's workers are on {reported}, but the ranks of its group hold {held}: weights could not be "
                "handed over. Start one rank a GPU, with the same CUDA_VISIBLE_DEVICES on all."
            )
        if self._sampler != self._settings.sampler_type:
            log.info(f"TensorRT-LLM {self._release.name} has no {self._settings.sampler_type}: {self._sampler} samples")
        if self._sampler not in self._release.follow_seeds:
            log.warning(
                f"{self._sampler} of TensorRT-LLM {self._release.name} ignores the seeds of requests: a rerun does not "
                "repeat its samples"
            )

    # Called on every rank of the group.

    def _transfer(self, buckets: Iterable[Bucket], digests: bool) -> dict[str, int]:
        staging, arrivals = Staging(self._device), Arrivals(self._expected)
        landed: dict[str, int] = {}
        for bucket in self._group.in_step(buckets):
            arrivals.take(bucket)
            landed |= self._send(staging, bucket, digests, is_good=not arrivals.problems)
            del bucket
        del staging
        return_cached_memory(self._device)
        self._group.together(arrivals.finish)
        self._group.lead(lambda: self._host.update_weights(None))
        return landed

    def _send(self, staging: Staging, bucket: Bucket, digests: bool, *, is_good: bool) -> dict[str, int]:
        """Send one bucket to the workers; returns its digests, by name, when all have read it.

        Nothing is sent where it is not good on some rank: nothing that is sent later could make the refit good.
        """

        def handles() -> tuple[str, tuple[str, str | None]] | None:
            if not is_good:
                return None
            staging.put(bucket)
            return self._uuid, (staging.handles(), staging.handles() if digests else None)

        sent = self._group.together(handles)
        every = dict(each for each in sent if each is not None)
        if len(every) < len(sent):
            return {}

        def update() -> dict[str, int]:
            self._host.update_weights({uuid: text for uuid, (text, _) in every.items()})
            if not digests:
                return {}
            second = {uuid: text for uuid, (_, text) in every.items()}
            first, *others = self._host.call("simplerl_digests", second)
            if differing := [name for name in first if any(other[name] != first[name] for other in others)]:
                raise RuntimeError(f"the engine's workers received different tensors: {', '.join(differing[:5])}")
            return first

        return self._group.lead(update)

    def _require_awake(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed; make a new one.")
        if self._asleep:
            raise RuntimeError("the engine is asleep; call wake() first.")


def usable_release() -> Release:
    """The installed release of TensorRT-LLM, when the installed Ray has all that it imports. Imports neither.

    Raises ValueError where it cannot be used.
    """
    release, source = installed_release(), installed_source()
    if source is not None and (missing := list(missing_of_ray(source))):
        raise ValueError(f"rollout.engine=trtllm: TensorRT-LLM cannot be imported with this Ray. {'; '.join(missing)}.")
    return release


def _name_of(group: dist.ProcessGroup | None) -> str:
    """An engine's name in messages: its ranks and its machine."""
    first = dist.get_rank() if dist.is_initialized() else 0
    last = first + (1 if group is None else group.size()) - 1
    ranks = f"rank {first}" if first == last else f"ranks {first} to {last}"
    return f"the TensorRT-LLM engine of {ranks} on {socket.gethostname()}"
