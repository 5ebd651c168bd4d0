"""Our settings as TensorRT-LLM's arguments, and its outputs as tokens and log-probabilities. Does not import it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nemo_simplerl.config.schema import TrtllmConfig
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.trtllm.releases import TORCH, Release

_NEVER = -1.0e9  # a logit whose probability is 0 in float32
EXTENSION = "nemo_simplerl.rollout.trtllm.worker.Extension"
EVENT_LOOP_REPORT = "event_loop_ended."  # name, before the worker's rank, of the file that says why
CACHE_TAGS = ("kv_cache",)


def llm_arguments(
    model: str, dtype: torch.dtype, max_model_len: int, settings: TrtllmConfig, release: Release
) -> dict[str, Any]:
    """Keyword arguments of AsyncLLM from `settings`; settings.engine_args override them, section by section."""
    graphs = {"enable_padding": True, "max_batch_size": settings.max_batch_size} if settings.cuda_graph else None
    arguments: dict[str, Any] = {
        "model": model,
        "backend": "pytorch",
        "dtype": str(dtype).removeprefix("torch."),
        "tensor_parallel_size": settings.tensor_parallel_size,
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "max_seq_len": max_model_len,
        "max_input_len": max_model_len,  # its default refuses prompts of more than 1024 tokens
        "max_batch_size": settings.max_batch_size,
        "max_num_tokens": settings.max_num_tokens,
        "kv_cache_config": {
            "enable_block_reuse": True,
            "free_gpu_memory_fraction": settings.free_gpu_memory_fraction,
        },
        "cuda_graph_config": graphs,
        # As many requests at once as the cache holds now, not as it would hold if all ran to their limit, which few
        # do; a rollout comes all at once, so waiting a few turns makes full batches of prompts. Both are the values of
        # verl and NeMo-RL.
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
        "batch_wait_timeout_iters": 32,
        "batch_wait_max_tokens_ratio": 0.5,
        "ray_worker_extension_cls": EXTENSION,
    }
    if len(release.samplers) > 1:
        arguments["sampler_type"] = release.sampler(settings.sampler_type)
    if release.sleep_argument == "enable_sleep":
        arguments["enable_sleep"] = settings.sleep
    elif settings.sleep:
        # Everything comes back as it was but the KV cache, whose default would change with any mode that is given.
        arguments["sleep_config"] = {"restore_modes": {"kv_cache": "NONE"}}
    return _laid_over(arguments, settings.engine_args)


def _laid_over(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`ours` with the values of `theirs`, where both have a section key by key."""
    merged = dict(ours)
    for key, value in theirs.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def sleep_tags(memory_types: Iterable[str]) -> list[str]:
    """Tags of all memory that a sleeping engine gives back, but the KV cache: those of the package's enumeration.

    A release that keeps weights under a tag of their own (1.3 does) would otherwise keep them on the GPU in silence.
    Tags that begin with _no_capture are of the start alone.
    """
    return [tag for tag in memory_types if tag not in CACHE_TAGS and not tag.startswith("_no_capture")]


def padding_bias(vocab_size: int, vocab_limit: int | None) -> torch.Tensor | None:
    """What is added to the logits so that no id from `vocab_limit` on is sampled: float32 [V]; None where all may be.

    Both samplers take such a bias, and TorchSampler of 1.2 no list of forbidden ids. The number is finite, for no
    difference of two infinities is one.
    """
    if vocab_limit is None or vocab_limit >= vocab_size:
        return None
    bias_V = torch.zeros(vocab_size)
    bias_V[vocab_limit:] = _NEVER
    return bias_V


def logprobs_mode(params: SamplingParams, sampler: str, release: Release) -> str | None:
    """Name of the mode in which the log-probabilities are those of the draw; None where a request names none.

    TorchSampler's are of the raw logits else, which is what a greedy request wants.
    """
    return "PROCESSED" if release.has_logprobs_mode and sampler == TORCH and params.temperature > 0 else None


def request_arguments(
    params: SamplingParams, seed: int, bias_V: torch.Tensor | None = None, mode: str | None = None
) -> dict[str, Any]:
    """Keyword arguments of the engine's SamplingParams for one sample. No end_id: the ids keep the stop token.

    bias_V: of `padding_bias`. mode: of `logprobs_mode`.
    """
    greedy = params.temperature == 0
    arguments = {
        "max_tokens": params.max_tokens,
        # Greedy as the most probable of one: a temperature of 0 is a division in one of the two samplers.
        "temperature": 1.0 if greedy else params.temperature,
        "top_p": 1.0 if greedy else params.top_p,
        "top_k": 1 if greedy else params.top_k,
        "seed": seed % 2**64,
        "logprobs": 1,
        "end_id": -1,
        "pad_id": 0,
        "stop_token_ids": list(params.stop_token_ids) or None,
        "include_stop_str_in_output": True,
        "embedding_bias": bias_V,
        "detokenize": False,
    }
    return arguments if mode is None else arguments | {"logprobs_mode": mode}


def tokens_and_logprobs(output: Any, params: SamplingParams) -> tuple[list[int], list[float]]:
    """Token ids and log-probabilities of one request. Raises RuntimeError where the trainer cannot use them."""
    (choice,) = output.outputs
    token_ids = list(choice.token_ids)  # the engine's own list
    if choice.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"the engine ended a request with {choice.finish_reason!r} instead of a stop or its length.")
    if choice.finish_reason == "stop" and (not token_ids or token_ids[-1] not in params.stop_token_ids):
        raise RuntimeError("the engine reports a stop, but the response does not end in one of stop_token_ids.")
    if len(choice.logprobs) != len(token_ids):
        raise RuntimeError(f"the engine gave {len(choice.logprobs)} log-probabilities of {len(token_ids)} tokens.")
    if missing := [token for token, entry in zip(token_ids, choice.logprobs, strict=True) if token not in entry]:
        raise RuntimeError(f"the engine gives no log-probability of token {missing[0]}, which it sampled.")
    # By token: beside the sampled token an entry may hold the most probable one, and hold it first.
    return token_ids, [entry[token].logprob for token, entry in zip(token_ids, choice.logprobs, strict=True)]
