"""Rules of `rollout.engine=vllm`, which run only where it is chosen, and the ranges of its section."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from nemo_simplerl.config.rules.numbers import AT_LEAST_1, POSITIVE, near_divisors
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape

PYTHON_VARIABLE = "SIMPLERL_VLLM_PYTHON"
_DEFAULT_PYTHON = Path(__file__).parents[4] / ".venv-vllm/bin/python"  # scripts/engine_env.sh makes it
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0  # vLLM's own bounds; lower ones but 0 it raises to its least in silence

RANGES = {
    "tensor_parallel_size": AT_LEAST_1,
    "gpu_memory_utilization": "(0, 1)",
    "cpu_kv_cache_mb": AT_LEAST_1,
    "max_batch_size": AT_LEAST_1,
    "max_num_tokens": AT_LEAST_1,
    "start_timeout_s": POSITIVE,
    "timeout_s": POSITIVE,
}


def engine_python(given: str | None) -> str:
    """The interpreter that runs vLLM: rollout.vllm.python, else $SIMPLERL_VLLM_PYTHON, else the repository's own.

    Raises ValueError where there is no such program.
    """
    chosen = given or os.environ.get(PYTHON_VARIABLE) or str(_DEFAULT_PYTHON)
    found = shutil.which(os.path.expanduser(chosen))
    if found is None:
        source = "rollout.vllm.python" if given else PYTHON_VARIABLE if os.environ.get(PYTHON_VARIABLE) else "default"
        raise ValueError(
            f"rollout.engine=vllm: {chosen} ({source}) is no program. vLLM needs an environment of its own: make it "
            "with `scripts/engine_env.sh vllm`, name its Python in rollout.vllm.python, or set rollout.engine=hf."
        )
    return os.path.abspath(found)


def its_python_is_there(config: Config) -> Iterator[str]:
    try:
        python = engine_python(config.rollout.vllm.python)
    except ValueError as error:
        yield str(error)
        return
    asked = [python, "-I", "-c", "from importlib.util import find_spec; print(bool(find_spec('vllm')))"]
    if _printed(asked) != "True":
        yield (
            f"rollout.engine=vllm: {python} is no Python with vLLM. Make one with `scripts/engine_env.sh vllm`, name "
            "another in rollout.vllm.python, or set rollout.engine=hf."
        )


def _printed(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def refused_temperature(temperature: float) -> str | None:
    """Why vLLM does not sample at this temperature, and what would work, in words; None where it does."""
    if temperature > MAX_TEMPERATURE:
        return (
            f"temperature={temperature} with rollout.engine=vllm, which takes at most {MAX_TEMPERATURE:g}. "
            "Lower it, or set rollout.engine=hf."
        )
    if 0 < temperature < MIN_TEMPERATURE:
        return (
            f"temperature={temperature} with rollout.engine=vllm, which samples at {MIN_TEMPERATURE:g} or more. "
            "Raise it, take 0 (greedy) where that is allowed, or set rollout.engine=hf."
        )
    return None


def temperature_is_accepted(config: Config) -> Iterator[str]:
    if reason := refused_temperature(config.rollout.temperature):
        yield f"rollout.{reason}"


def engine_splits_the_heads(config: Config, shape: ModelShape) -> Iterator[str]:
    size, heads, groups = config.rollout.vllm.tensor_parallel_size, shape.num_attention_heads, shape.num_query_groups
    if heads % size or (groups % size and size % groups):
        yield (
            f"rollout.vllm.tensor_parallel_size={size} does not divide the model's {heads} attention heads and "
            f"{groups} key-value heads. Sizes that work: {near_divisors(groups, size)}."
        )
