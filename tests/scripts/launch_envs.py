"""Environments of launchers' own packages, made once by scripts/launch_env.sh and kept."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python_of(name: str) -> str:
    """The interpreter of a launcher's environment; skips the test, with pip's reason, where it cannot be made."""
    env = os.environ | {"SKIPPED": ""}
    done = subprocess.run([ROOT / "scripts/launch_env.sh", name], env=env, capture_output=True, text=True)
    if done.returncode == 69:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
