"""The forked ranks of scripts/bench/kills.py for tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

from kills import different, kill_runs, problems_in, start  # noqa: E402

__all__ = ["different", "kill_runs", "problems_in", "start"]
