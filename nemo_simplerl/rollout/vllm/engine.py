"""vLLM as the rollout engine: the adapter in the trainer's process. docs/vllm.md says how it works and why so.

The engine lives in a process of another Python environment (child.py), which the first rank of its group starts.
"""

import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_simplerl.config.rules.engines.vllm import engine_python
from nemo_simplerl.config.schema import VllmConfig
from nemo_simplerl.rollout.base import Bucket, SamplingParams, check_request
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.expected_weights import Arrivals, ExpectedWeights
from nemo_simplerl.rollout.hf_model import read_config
from nemo_simplerl.rollout.own_process.answers import completions_of
from nemo_simplerl.rollout.own_process.engine_group import EngineGroup
from nemo_simplerl.rollout.own_process.handles import Staging, device_uuid, return_cached_memory
from nemo_simplerl.rollout.stopping import StopRule, TextDecoder
from nemo_simplerl.rollout.vllm.model_folder import cache_root, model_folder
from nemo_simplerl.rollout.vllm.process import EngineProcess
from nemo_simplerl.rollout.vllm.values import (
    CPU_HEAD_SIZES,
    check_answers,
    llm_arguments,
    process_environment,
    request_arguments,
    visible_name,
)
from nemo_simplerl.rollout.weight_state import WeightState

log = logging.getLogger(__name__)


class VllmEngine:
    """A RolloutEngine of one group of `settings.tensor_parallel_size` ranks, of which the first is the leader.

    Every method but `generate`, `invalidate` and `close` is collective over the group; `generate` belongs to the leader
    (see `generates`). The engine reads config.json only: its weights come from the first refit. After any error of its
    process that process is ended, and the next refit starts another one.

    device: this rank's; the engine's worker for it lives on the same one. dtype: of the engine's weights.
    tokenizer: decodes stop strings and the text of completions. max_model_len: longest prompt + response, tokens.
    group: of gloo; None is this rank alone. vocab_limit: ids from here on, padding rows of the embedding, are never
    sampled. start: starts the process of a Python, with an environment, under a name.
    Raises ValueError before anything starts where vLLM's Python is not there or cannot compute the model.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        tokenizer: TextDecoder | None,
        device: torch.device,
        dtype: torch.dtype,
        max_model_len: int,
        settings: VllmConfig,
        group: dist.ProcessGroup | None,
        vocab_limit: int | None = None,
        start: Callable[[str, Mapping[str, str], str], EngineProcess] = EngineProcess,
    ):
        _require_head_size(model_path, device)
        self._python = engine_python(settings.python)
        self._config_file = Path(model_path) / "config.json"
        self._tokenizer, self._device, self._dtype, self._settings = tokenizer, device, dtype, settings
        self._max_model_len, self._group = max_model_len, EngineGroup(group)
        self._expected = ExpectedWeights(model_path)
        self._vocab_limit = min(self._expected.vocab_size, vocab_limit or self._expected.vocab_size)
        self._weight_state = WeightState()
        self._asleep, self._has_cache, self._closed = False, True, False
        self._start_process, self._process = start, None
        self.batch_size: int | None = None
        self.generates = self._group.leads
        self.sleeps_between_rollouts = device.type == "cuda"
        self._ensure_started()

    @property
    def weight_version(self) -> int | None:
        return self._weight_state.version

    def refit(self, buckets: Iterable[Bucket], version: int, *, digests: bool = False) -> dict[str, int]:
        """See RolloutEngine.refit; the digests are of what the engine holds when all is loaded."""
        buckets = iter(buckets)
        try:
            self._require_awake()
            with self._weight_state.replacing(version):
                self._ensure_started()
                try:
                    return self._transfer(buckets, version, digests)
                except BaseException:
                    self._end_process()  # it may hold a mixture of two versions
                    raise
        finally:
            for _ in buckets:
                pass

    def invalidate(self, reason: str) -> None:
        self._weight_state.invalidate(reason)

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]) -> Completions:
        """See RolloutEngine.generate. One request a sample, with its seed; all is checked before anything is sent.

        `params.stop` is applied to the responses that the engine returns. The engine itself stops at stop tokens only.
        """
        if not self.generates:
            raise RuntimeError("this rank belongs to an engine that another rank hosts; generate on its first rank.")
        self._require_awake()
        version, vocab_size = self._weight_state.require(), self._expected.vocab_size
        check_request(prompts, params, seeds, vocab_size=vocab_size, max_model_len=self._max_model_len)
        stop_rule = StopRule(params.stop, params.stop_token_ids, self._tokenizer, vocab_size)
        requests = [(i // params.n, request_arguments(params, seed)) for i, seed in enumerate(seeds)]
        if not requests:
            return Completions.of([])
        try:
            if not self._has_cache:
                self._call("wake", ["kv_cache"])
                self._has_cache = True
            answers = self._call("generate", [[int(id_) for id_ in prompt] for prompt in prompts], requests, version)
            check_answers(answers, params, len(requests), self._vocab_limit)
        except BaseException as error:
            self._end_process()  # after an error in a step vLLM answers nothing more
            self.invalidate(f"{type(error).__name__} in its last generation")
            raise
        given = [(tokens, logprobs) for tokens, logprobs, _ in answers]
        return completions_of(given, seeds, stop_rule, self._tokenizer, version)

    def sleep(self) -> None:
        """See RolloutEngine.sleep. On a GPU, with `settings.sleep`, weights and KV cache are dropped."""
        if self._closed or self._asleep:
            return
        if self._frees_memory:
            self.invalidate("its weights were dropped when it went to sleep")
            self._lead_call("sleep")
            self._has_cache = False
        self._asleep = True

    def wake(self) -> None:
        """See RolloutEngine.wake. The KV cache's memory comes back with the first request: a refit needs its room."""
        if self._closed or not self._asleep:
            return
        if self._frees_memory:
            self._group.together(lambda: return_cached_memory(self._device))
            self._lead_call("wake", ["weights"])
        self._asleep = False

    def close(self) -> None:
        """See RolloutEngine.close. Ends the engine's process."""
        self._closed = True
        self._end_process()

    # Called on the leader.

    def _call(self, method: str, *args):
        if self._process is None:
            raise RuntimeError(f"the vLLM engine of {self._config_file.parent} is not running; refit it first.")
        return self._process.call(method, *args, timeout_s=self._settings.timeout_s)

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _start(self, devices: Sequence[tuple[str, str, str | None]]) -> None:
        hosts = list(dict.fromkeys(host for host, _, _ in devices))
        if len(hosts) > 1:
            raise ValueError(
                f"the ranks of one engine are on {', '.join(hosts)}; weights are handed over within one machine. "
                "Set rollout.vllm.tensor_parallel_size to divide the ranks of each machine."
            )
        visible = [name for _, _, name in devices if name is not None]
        environment = process_environment(visible, torch.get_num_threads())
        self._process = self._start_process(self._python, environment, "the vLLM engine")
        compiles = self._device.type == "cuda" and self._settings.cuda_graph
        model = model_folder(self._config_file, cache_root() if compiles else None, self._process.folder)
        arguments = llm_arguments(model, self._device, self._dtype, self._max_model_len, self._settings)
        limit = None if self._vocab_limit == self._expected.vocab_size else self._vocab_limit
        found = self._process.call("start", arguments, limit, timeout_s=self._settings.start_timeout_s)
        expected = [uuid for _, uuid, _ in devices]
        if found != expected:
            raise RuntimeError(
                f"the engine's workers are on {found}, but the ranks of its group hold {expected}: weights could not "
                "be handed over. Start one rank a GPU, with the same CUDA_VISIBLE_DEVICES on all."
            )

    # Called on every rank of the group.

    @property
    def _frees_memory(self) -> bool:
        return self._device.type == "cuda" and self._settings.sleep

    def _ensure_started(self) -> None:
        """Start the engine's process where there is none. Collective."""
        if self._group.lead(lambda: self._process is not None):
            return
        self._group.together(lambda: return_cached_memory(self._device))
        uuid, name = device_uuid(self._device, self._group.rank), visible_name(self._device)
        devices = self._group.together(lambda: (socket.gethostname(), uuid, name))
        try:
            self._group.lead(lambda: self._start(devices))
        except BaseException:
            self._end_process()
            raise
        self._has_cache = True

    def _lead_call(self, method: str, *args) -> None:
        """The leader's `_call`, where it has a process: an error ends that, and the next refit starts another one."""
        try:
            self._group.lead(lambda: None if self._process is None else self._call(method, *args))
        except BaseException:
            self._end_process()
            raise

    def _transfer(self, buckets: Iterable[Bucket], version: int, digests: bool) -> dict[str, int]:
        staging, arrivals = Staging(self._device), Arrivals(self._expected)
        sent_as: dict[str, str] = {}  # the first name of a parameter -> the name it came under
        for bucket in self._group.in_step(buckets):
            arrivals.take(bucket)
            sent_as |= {self._expected.owner.get(name, name): name for name, _ in bucket}
            self._send(staging, bucket, is_good=not arrivals.problems)
            del bucket
        del staging
        return_cached_memory(self._device)
        self._group.together(arrivals.finish)
        found = self._group.lead(lambda: self._call("finish", version, digests))
        if not digests:
            return {}
        first, *others = found
        if differing := [name for name in first if any(other.get(name) != first[name] for other in others)]:
            raise RuntimeError(f"the engine's workers hold different tensors: {', '.join(differing[:5])}")
        return {sent_as.get(name, name): value for name, value in first.items()}

    def _send(self, staging: Staging, bucket: Bucket, *, is_good: bool) -> None:
        """Hand one bucket to the workers, each its rank's own copy, and wait until all have loaded it.

        Nothing is loaded where it is not good on some rank: nothing that is sent later could make the refit good.
        """

        def handles() -> str | None:
            if not is_good:
                return None
            staging.put([(self._expected.owner[name], tensor) for name, tensor in bucket])
            return staging.handles()

        every = self._group.together(handles)
        if None not in every:
            self._group.lead(lambda: self._call("load", every))

    def _require_awake(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed; make a new one.")
        if self._asleep:
            raise RuntimeError("the engine is asleep; call wake() first.")


def _require_head_size(model_path: str | Path, device: torch.device) -> None:
    """Raises ValueError where vLLM has no attention for the model's heads on this kind of device."""
    config = read_config(model_path)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if device.type == "cpu" and size not in CPU_HEAD_SIZES:
        raise ValueError(
            f"rollout.engine=vllm: the heads of {model_path} have size {size}. On a CPU vLLM computes attention of "
            f"sizes {', '.join(map(str, CPU_HEAD_SIZES))} only: set rollout.engine=hf, or use a model with such heads."
        )
