import os
import threading
import time
from collections import Counter
from contextlib import contextmanager
from queue import Queue
from types import SimpleNamespace

import torch

from tensorrt_llm._torch import cuda_stream, virtual_memory
from tensorrt_llm._torch.pyexecutor.model_loader import ModelLoader
from tensorrt_llm._torch.pyexecutor.samplers import SAMPLERS
from tensorrt_llm.executor.result import CompletionOutput

_MODEL, _CACHE = "model", "kv_cache"
_CONTROL, _SHUTDOWN = object(), None


def _weights_come_back(llm_args) -> bool:
    return True


class PyExecutor:
    def __init__(self, llm_args):
        loader = ModelLoader(llm_args)
        self.llm_args = llm_args
        self.model_engine = SimpleNamespace(model=loader.load(), model_loader=loader)
        cuda_stream.synchronize()
        self._cached_prompts: set[tuple[int, ...]] = set()  # whose blocks a later request would reuse
        self._stale_prompts: set[tuple[int, ...]] = set()  # of those: whose blocks are gone or of other weights
        self._host_copy: list[torch.Tensor] = []
        self._sample = SAMPLERS[os.environ.get("TLLM_DOUBLE_SAMPLER", "own")](llm_args)
        self._queue: Queue = Queue()
        self.control_request_barrier = threading.Event()
        self.control_action_done = threading.Event()
        self.worker_started = False
        self.is_shutdown = False
        virtual_memory.contents[_MODEL] = (self._release_model, self._restore_model)
        virtual_memory.contents[_CACHE] = (self._release_cache, self._restore_cache)
        self.start_worker()

    def start_worker(self) -> None:
        if not self.worker_started:
            self.worker_thread = threading.Thread(target=self._event_loop_wrapper, daemon=True)
            self.worker_thread.start()
            self.worker_started = True

    def _event_loop_wrapper(self) -> None:
        try:
            self._executor_loop()
        finally:
            self.is_shutdown = True

    def _executor_loop(self) -> None:
        while (item := self._queue.get()) is not _SHUTDOWN:
            if item is _CONTROL:
                self.control_request_barrier.set()
                self.control_action_done.wait()
                self.control_action_done.clear()
                continue
            requests, answer = item
            if any(os.environ.get("TLLM_DOUBLE_FATAL_TOKEN") in map(str, ids) for ids, _ in requests):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            try:
                answer.append(self._generate(requests))
            except Exception as error:  # of these requests alone: the loop goes on
                answer.append(error)

    def await_responses(self, requests) -> list[CompletionOutput]:
        """The outputs of requests, which nobody answers when the loop has ended."""
        answer: list = []
        self._queue.put((requests, answer))
        while not answer:
            time.sleep(0.002)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    @contextmanager
    def control_action(self):
        self._queue.put(_CONTROL)
        self.control_request_barrier.wait()
        try:
            yield self
        finally:
            self.control_action_done.set()
            self.control_request_barrier.clear()

    def shutdown(self) -> None:
        self._queue.put(_SHUTDOWN)
        self.worker_thread.join()

    def reset_prefix_cache(self) -> None:
        self._cached_prompts, self._stale_prompts = set(), set()

    def weights_change(self) -> None:
        if _MODEL in virtual_memory.released:
            raise RuntimeError("the double: the weights' memory is released; the real engine would write to no address")
        self._stale_prompts |= self._cached_prompts

    @torch.inference_mode()
    def _generate(self, requests) -> list[CompletionOutput]:
        if virtual_memory.released:
            asleep = sorted(virtual_memory.released)
            raise RuntimeError(f"the double: generating while {asleep} sleep; the real engine would read no memory")
        if hasattr(self.model_engine.model, "first_pre_reload_weights"):
            raise RuntimeError(
                "the double: generating in the middle of a refit: update_weights(None) has not been called"
            )
        cuda_stream.synchronize()  # later work on the stream finds the copies done
        if any(parameter.isnan().any() for parameter in self.model_engine.model.parameters()):
            raise RuntimeError("the double: generating with weights that were discarded; the real engine would do it")
        sampled = Counter((tuple(ids), params.seed or 0) for ids, params in requests if not params.is_greedy)
        if twice := [seed for (_, seed), count in sampled.items() if count > 1]:
            raise RuntimeError(f"the double: two requests of one prompt with seed {twice[0]} would be the same sample")
        if self.llm_args.kv_cache_config.enable_block_reuse:
            prompts = {tuple(ids) for ids, _ in requests}
            if prompts & self._stale_prompts:
                raise RuntimeError("the double: a prompt's stale KV blocks would be reused; reset the prefix cache")
            self._cached_prompts |= prompts
        answers = self._sample(self.model_engine.model.hf, requests)
        return [_output(params, *answer) for (_, params), answer in zip(requests, answers, strict=True)]

    def _release_model(self) -> None:
        parameters = list(self.model_engine.model.parameters())
        self._host_copy = [parameter.clone() for parameter in parameters] if _weights_come_back(self.llm_args) else []
        for parameter in parameters:
            parameter.data.fill_(float("nan"))

    def _restore_model(self) -> None:
        if self._host_copy:
            for parameter, copy in zip(self.model_engine.model.parameters(), self._host_copy, strict=True):
                parameter.data.copy_(copy)
        self._host_copy = []

    def _release_cache(self) -> None:
        self._stale_prompts |= self._cached_prompts

    def _restore_cache(self) -> None:
        if virtual_memory.released != {_CACHE}:
            raise RuntimeError("the double: the KV cache takes the room that the weights need; wake them first")
        if hasattr(self.model_engine.model, "first_pre_reload_weights"):
            raise RuntimeError("the double: the KV cache takes the room that the refit's copies need; finish it first")


def _output(params, token_ids: list[int], logprobs: list[dict], is_stopped: bool) -> CompletionOutput:
    if is_stopped and not (params.include_stop_str_in_output and token_ids[-1] != params.end_id):
        token_ids = token_ids[:-1]  # the logprobs keep their length, as in the real package
    return CompletionOutput(
        index=0,
        token_ids=token_ids,
        logprobs=logprobs if params.logprobs else [],
        finish_reason="stop" if is_stopped else "length",
    )
