"""What differs between the minor releases of TensorRT-LLM that the adapter drives: the one table of them.

Names and places only; nothing here imports TensorRT-LLM. contract.py holds each release's sources against its row.
"""

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

DISTRIBUTION = "tensorrt-llm"
TRTLLM, TORCH = "TRTLLMSampler", "TorchSampler"


@dataclass(frozen=True, kw_only=True)
class Release:
    """One minor release, as far as it differs from the others."""

    name: str  # its first two numbers
    sleep_argument: Literal["enable_sleep", "sleep_config"]  # of TorchLlmArgs, which lets the engine sleep
    memory_types: str  # module with the enumeration ExecutorMemoryType, whose values are the tags of sleep and wakeup
    samplers: tuple[str, ...]  # the argument sampler_type chooses among them, and is gone where there is only one
    follow_seeds: tuple[str, ...]  # samplers that draw a request from its own seed
    has_logprobs_mode: bool  # whether a request says of which distribution its log-probabilities are

    def sampler(self, asked: str) -> str:
        """The sampler that this release has for the setting rollout.trtllm.sampler_type."""
        return asked if asked in self.samplers else TORCH


RELEASES = {
    release.name: release
    for release in (
        Release(
            name="1.2",
            sleep_argument="enable_sleep",
            memory_types="tensorrt_llm._torch.virtual_memory",
            samplers=(TRTLLM, TORCH),
            follow_seeds=(TRTLLM,),
            has_logprobs_mode=False,
        ),
        # NVIDIA/TensorRT-LLM#11889 (sleep_config, model_weights), #9675 (logprobs_mode).
        Release(
            name="1.3",
            sleep_argument="sleep_config",
            memory_types="tensorrt_llm.llmapi.llm_args",
            samplers=(TRTLLM, TORCH),
            follow_seeds=(TRTLLM,),
            has_logprobs_mode=True,
        ),
        # #18232 (sampler_type and TRTLLMSampler removed), #17172 (seeds of TorchSampler).
        Release(
            name="1.4",
            sleep_argument="sleep_config",
            memory_types="tensorrt_llm.llmapi.llm_args",
            samplers=(TORCH,),
            follow_seeds=(TORCH,),
            has_logprobs_mode=True,
        ),
    )
}


def release_of(version: str) -> Release | None:
    """The row of a version such as 1.3.0rc21; None for one that the adapter does not know."""
    return RELEASES.get(".".join(version.split(".")[:2]))


def installed_release() -> Release:
    """The row of the installed TensorRT-LLM. Imports neither it nor Ray.

    Raises ValueError where it is not there, of another release, or without Ray.
    """
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise ValueError(
            "rollout.engine=trtllm needs the package tensorrt-llm, which is not installed. Work in the container "
            "image, which has it, or set rollout.engine=hf."
        ) from None
    release = release_of(version)
    if release is None:
        raise ValueError(
            f"rollout.engine=trtllm is written for tensorrt-llm {', '.join(RELEASES)}, and {version} is installed: "
            "older ones cannot be refitted, newer ones were not read. Install 1.2.1, or set rollout.engine=hf."
        )
    if importlib.util.find_spec("ray") is None:
        raise ValueError("rollout.engine=trtllm needs the package ray, which tensorrt-llm does not bring: install it.")
    return release
