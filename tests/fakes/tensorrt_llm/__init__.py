"""A CPU double of TensorRT-LLM 1.2: its package layout and signatures as far as rollout/trtllm/engine.py uses them.

A Hugging Face model runs in real Ray worker processes, takes weights as pickled handles of shared memory, and enforces
what the real engine needs and would punish late, by a crash, a hang or wrong samples.
tests/rollout/trtllm/test_contract.py holds its source against the same contract as the real package's.
"""

import os

if os.environ.get("TLLM_DISABLE_MPI") != "1":
    raise RuntimeError(
        "the double: without TLLM_DISABLE_MPI=1 importing this package would run MPI_Init in the process"
    )

from tensorrt_llm._torch.async_llm import AsyncLLM
from tensorrt_llm.llmapi.llm import LLM
from tensorrt_llm.sampling_params import SamplingParams
from tensorrt_llm.version import __version__

__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]
