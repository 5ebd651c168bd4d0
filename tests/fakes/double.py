"""Installation of the double of TensorRT-LLM, for imports of this process and of its Ray workers."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.releases import build

FAKES = Path(__file__).parent
ROOT = FAKES.parent.parent


def install_double(sampler: str, folder: Path = FAKES) -> None:
    """Install it for the rest of this process. `sampler`: own, or hf_engine for the draws of rollout/hf/engine.py.

    folder: that holds the package.
    """
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    os.environ["TLLM_DOUBLE_SAMPLER"] = sampler


@contextmanager
def double_installed(sampler: str, release: str = "1.2") -> Iterator[None]:
    """Context in which the double of a release is installed; the environment and the import path are restored on
    exit."""
    before, path = dict(os.environ), list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        if release != "1.2":
            build(release, Path(folder))
        install_double(sampler, FAKES if release == "1.2" else Path(folder))
        try:
            yield
        finally:
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(before)
            for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
                del sys.modules[name]
