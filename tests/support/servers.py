"""Reward servers in processes of their own, started for a test and ended after it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MATH_SERVER = (sys.executable, "-m", "nemo_simplerl", "reward-server", "--workers", "2", "--port")
MISBEHAVING_SERVER = (sys.executable, str(ROOT / "tests/reward/serving/misbehaving_server.py"))


@dataclass
class Server:
    url: str
    process: subprocess.Popen

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def reward_server(
    *arguments: object, command=MATH_SERVER, port: int = 0, token: str | None = None, path: Path | None = ROOT
) -> Iterator[Server]:
    """A server that answers; killed at the end, where it has not ended by itself. path: where it finds the package;
    None: where it is installed."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("SIMPLERL_REWARD_TOKEN", "PYTHONPATH")
    }
    environment |= {} if path is None else {"PYTHONPATH": str(path)}
    environment |= {} if token is None else {"SIMPLERL_REWARD_TOKEN": token}
    process = subprocess.Popen(
        [*command, str(port), *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        first_line = process.stdout.readline()
        assert "reward server on http://" in first_line, first_line
        yield Server(first_line.split()[3].rstrip(","), process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
