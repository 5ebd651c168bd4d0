import os
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from tensorrt_llm._torch import virtual_memory
from tensorrt_llm._torch.pyexecutor.model_loader import ModelLoader
from tensorrt_llm._torch.pyexecutor.samplers import SAMPLERS
from tensorrt_llm._torch.virtual_memory import ExecutorMemoryType
from tensorrt_llm.executor.result import CompletionOutput

_MODEL, _CACHE = ExecutorMemoryType.MODEL_ENGINE_MAIN, ExecutorMemoryType.KV_CACHE


class PyExecutor:
    def __init__(self, llm_args):
        loader = ModelLoader(llm_args)
        self.llm_args = llm_args
        self.model_engine = SimpleNamespace(model=loader.load(), model_loader=loader)
        self._cached_prompts: set[tuple[int, ...]] = set()  # whose blocks a later request would reuse
        self._stale_prompts: set[tuple[int, ...]] = set()  # of those: whose blocks are gone or of other weights
        self._host_copy: list[torch.Tensor] = []
        self._sample = SAMPLERS[os.environ.get("TLLM_DOUBLE_SAMPLER", "own")](llm_args)
        virtual_memory.contents[_MODEL] = (self._release_model, self._restore_model)
        virtual_memory.contents[_CACHE] = (self._release_cache, self._restore_cache)

    @contextmanager
    def control_action(self):
        yield

    def reset_prefix_cache(self) -> None:
        self._cached_prompts, self._stale_prompts = set(), set()

    def weights_change(self) -> None:
        if _MODEL in virtual_memory.released:
            raise RuntimeError("the double: the weights' memory is released; the real engine would write to no address")
        self._stale_prompts |= self._cached_prompts

    @torch.inference_mode()
    def generate(self, requests) -> list[CompletionOutput]:
        if virtual_memory.released:
            asleep = sorted(tag.value for tag in virtual_memory.released)
            raise RuntimeError(f"the double: generating while {asleep} sleep; the real engine would read no memory")
        if hasattr(self.model_engine.model, "first_pre_reload_weights"):
            raise RuntimeError(
                "the double: generating in the middle of a refit: update_weights(None) has not been called"
            )
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
        self._host_copy = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.data.fill_(float("nan"))

    def _restore_model(self) -> None:
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
