"""The forked ranks of scripts/bench/kills.py for tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

from kills import OF_THE_ENGINE, different, kill_runs, problems_in, start  # noqa: E402

from support.fork_server import fork_context  # noqa: E402

fork_context()  # kills.start takes whatever the server has imported

__all__ = ["OF_THE_ENGINE", "different", "kill_runs", "problems_in", "start"]
