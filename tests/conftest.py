import os
import sys
from pathlib import Path

import nemo_simplerl.parallel  # noqa: F401  before a test imports Megatron, which may need the stand-in for Triton

sys.path.insert(0, str(Path(__file__).parent))


def pytest_terminal_summary(terminalreporter):
    """Add a line for each skipped test, and why, to the file that SKIPPED names: .ci/run ends with them."""
    if file := os.environ.get("SKIPPED"):
        with open(file, "a") as lines:
            for report in terminalreporter.stats.get("skipped", []):
                lines.write(f"{report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}\n")
