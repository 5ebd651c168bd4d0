"""Rules of `rollout.engine=trtllm`, which run only where it is chosen, and what `plan` too reads out of its section."""

from collections.abc import Iterator, Mapping
from typing import Any

from nemo_simplerl.config.rules.numbers import AT_LEAST_1
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape

RANGES = {
    "tensor_parallel_size": AT_LEAST_1,
    "free_gpu_memory_fraction": "(0, 1)",
    "max_batch_size": AT_LEAST_1,
    "max_num_tokens": AT_LEAST_1,
}


def every_token_has_its_logprob(config: Config) -> Iterator[str]:
    """The engine reports log-probabilities of other distributions than the one it draws from; see docs/trtllm.md."""
    rollout = config.rollout
    asked = {"top_p": (rollout.top_p, 1.0), "top_k": (rollout.top_k, 0)}
    if rollout.trtllm.sampler_type == "TorchSampler":
        asked["temperature"] = (rollout.temperature, 1.0)
    for name, (found, needed) in asked.items():
        if found != needed:
            yield (
                f"rollout.{name}={found} with rollout.engine=trtllm and "
                f"rollout.trtllm.sampler_type={rollout.trtllm.sampler_type}: the engine would report log-probabilities "
                f"of another distribution than it samples from. Set rollout.{name}={needed}, or rollout.engine=hf."
            )


def prompts_fit_one_pass(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.max_prompt_tokens > rollout.trtllm.max_num_tokens:
        yield (
            f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} is more than "
            f"rollout.trtllm.max_num_tokens={rollout.trtllm.max_num_tokens}, which the engine reads in one pass. "
            f"Set rollout.trtllm.max_num_tokens={rollout.max_prompt_tokens} or more."
        )


def engine_splits_the_heads(config: Config, shape: ModelShape) -> Iterator[str]:
    rollout, heads = config.rollout, shape.num_attention_heads
    size = rollout.trtllm.tensor_parallel_size
    if heads % size:
        yield (
            f"rollout.trtllm.tensor_parallel_size={size} does not divide the model's {heads} attention heads. "
            f"Sizes that work: {_divisors(heads)}."
        )


def discards_weights(arguments: Mapping[str, Any]) -> bool:
    """Whether an engine with these arguments has lost its weights when it wakes, so that only a refit brings them."""
    section = arguments.get("sleep_config")
    modes = section.get("restore_modes") if isinstance(section, Mapping) else None
    return isinstance(modes, Mapping) and any(
        modes.get(tag) in ("NONE", "MEMSET") for tag in ("model", "model_weights")
    )


def _divisors(number: int) -> str:
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)
