"""Our settings as vLLM's arguments and variables, and its answers held against what was asked. Does not import it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_simplerl.config.rules.engines.vllm import refused_temperature
from nemo_simplerl.config.schema import VllmConfig
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.own_process.launch_environment import environment_of_its_own

# Those that the kernels of vLLM 0.32 have on a CPU. Another is refused by the first request only.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)

_PACKAGES = {"site-packages", "dist-packages"}

Answer = tuple[list[int], list[float], str]  # token ids, their log-probabilities, the reason of the end


def llm_arguments(
    folder: Path, device: torch.device, dtype: torch.dtype, max_model_len: int, settings: VllmConfig
) -> dict[str, Any]:
    """Keyword arguments of vllm.LLM from `settings`; settings.engine_args override them.

    folder: holds config.json and nothing else: beside weights vLLM may build another model than config.json says.
    """
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": str(dtype).removeprefix("torch."),
        "tensor_parallel_size": settings.tensor_parallel_size,
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "generation_config": "vllm",  # its own: the model's would add stop tokens to those of a request
        "max_model_len": max_model_len,
        "max_num_seqs": settings.max_batch_size,
        "max_num_batched_tokens": settings.max_num_tokens,
        "logprobs_mode": "processed_logprobs",
        "seed": 0,
    }
    if device.type == "cuda":
        arguments |= {
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": not settings.cuda_graph,
            "enable_sleep_mode": settings.sleep,
        }
    else:
        arguments |= {
            "kv_cache_memory_bytes": settings.cpu_kv_cache_mb * 2**20,  # else it wants 0.92 of the machine's memory
            "enforce_eager": True,
            # A prompt that is read in two parts draws again from its seed, which a CPU's generator cannot.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_num_tokens, max_model_len),
        }
    return arguments | settings.engine_args


def process_environment(devices: Sequence[str], threads: int) -> dict[str, str]:
    """All variables of the engine's process: this one's without its launcher's and its Python's, and those for vLLM.

    devices: the GPUs of the engine as CUDA_VISIBLE_DEVICES names them; none on a CPU. threads: of each worker.
    """
    with environment_of_its_own():
        inherited = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "LD_PRELOAD"):
        inherited.pop(name, None)
    if libraries := inherited.pop("LD_LIBRARY_PATH", ""):
        inherited["LD_LIBRARY_PATH"] = _without_packages(libraries)
    ours = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in that process, not in another one
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # GPUs sample as CPUs do, by what sampling.py understands
        "VLLM_NO_USAGE_STATS": "1",  # else facts of the machine and the model are sent to vLLM's makers
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if devices:
        ours["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    else:
        # enforce_eager leaves some helpers to torch.compile, which takes seconds and a C++ compiler.
        ours |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "CUDA_VISIBLE_DEVICES": ""}
    return inherited | ours


def _without_packages(libraries: str) -> str:
    """The folders of LD_LIBRARY_PATH that lie in no folder of Python packages, as another Python's torch does."""
    folders = libraries.split(":")
    return ":".join(folder for folder in folders if not _PACKAGES & set(Path(folder).parts))


def visible_name(device: torch.device, environment: Mapping[str, str] = os.environ) -> str | None:
    """What CUDA_VISIBLE_DEVICES calls this GPU, or would; None for a CPU."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


def request_arguments(params: SamplingParams, seed: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams for one sample. ValueError on a temperature it does not take."""
    if reason := refused_temperature(params.temperature):
        raise ValueError(reason)
    greedy = params.temperature == 0
    return {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": 1.0 if greedy else params.top_p,
        "top_k": 0 if greedy else params.top_k,
        "seed": seed % 2**64,  # -1 would be no seed, and 2**64 ends the engine
        "logprobs": 0,  # of the sampled token alone
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": True,  # of config.json; ours are in stop_token_ids
        "detokenize": False,
    }


def check_answers(answers: Sequence[Answer], params: SamplingParams, num_requests: int, vocab_limit: int) -> None:
    """Raises RuntimeError where vLLM's answers are not what was asked, and the trainer cannot use them."""
    if len(answers) != num_requests:
        raise RuntimeError(f"the engine answered {len(answers)} of {num_requests} requests.")
    for token_ids, logprobs, reason in answers:
        if reason not in ("stop", "length"):
            raise RuntimeError(f"the engine ended a request with {reason!r} instead of a stop or its length.")
        stopped = bool(token_ids) and token_ids[-1] in params.stop_token_ids
        if stopped != (reason == "stop") or (reason == "length" and len(token_ids) != params.max_tokens):
            raise RuntimeError(f"the engine ended a request of {len(token_ids)} tokens by {reason!r} without reason.")
        if len(logprobs) != len(token_ids):
            raise RuntimeError(f"the engine gave {len(logprobs)} log-probabilities of {len(token_ids)} tokens.")
        if max(token_ids) >= vocab_limit:
            raise RuntimeError(f"the engine sampled id {max(token_ids)}, and the tokenizer has {vocab_limit} ids.")
