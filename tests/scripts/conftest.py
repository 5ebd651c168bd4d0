import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path) -> Path:
    """The scripts that make environments and the files that they look at, in a place with a space in its name."""
    root = tmp_path / "a copy"
    (root / "scripts").mkdir(parents=True)
    for name in ("scripts/env.sh", "scripts/engine_env.sh", "scripts/test.sh", "setup.py"):
        shutil.copy(ROOT / name, root / name)
    for pins in ROOT.glob("constraints*.txt"):
        shutil.copy(pins, root)
    return root
