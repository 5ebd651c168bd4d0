import pytest

from support.small_run import few_problems


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Overrides that point to a few problems."""
    return few_problems(tmp_path_factory.mktemp("data"))
