from pathlib import Path

import pytest

from support.forms import converted, save_critic, save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Paths of a model in every form, and of a critic. Read-only: the tests of a module share them."""
    folder = tmp_path_factory.mktemp("made")
    hf = save_model(folder / "hf")
    return {
        "hf": hf,
        "critic": save_critic(folder / "critic"),
        "nemo": converted(hf, folder / "m.nemo", "nemo"),
        "checkpoint": converted(hf, folder / "step", "checkpoint"),
    }
