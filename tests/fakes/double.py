"""Installation of the double of TensorRT-LLM, for imports of this process and of its Ray workers."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAKES = Path(__file__).parent
ROOT = FAKES.parent.parent


def install_double(sampler: str) -> None:
    """Install it for the rest of this process. `sampler`: own, or hf_engine for the draws of rollout/hf/engine.py."""
    sys.path.insert(0, str(FAKES))
    os.environ["PYTHONPATH"] = f"{FAKES}{os.pathsep}{ROOT}"  # what workers are started with
    os.environ["TLLM_DOUBLE_SAMPLER"] = sampler


@contextmanager
def double_installed(sampler: str) -> Iterator[None]:
    """Context in which the double is installed; the environment and the import path are restored on exit."""
    before, path = dict(os.environ), list(sys.path)
    install_double(sampler)
    try:
        yield
    finally:
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(before)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
            del sys.modules[name]
