import pytest

from support.vllm_engine import python_with_vllm


@pytest.fixture(scope="session")
def vllm_python() -> str:
    return python_with_vllm()
