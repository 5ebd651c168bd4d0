"""The machine, the day and the packages that benches run with, as one JSON line."""

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "megatron-core", "transformers", "numpy")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    day = datetime.date.today().isoformat()
    print(json.dumps({"bench": "machine", "day": day, "cpu": processor(), "cores": os.cpu_count(), **versions}))
