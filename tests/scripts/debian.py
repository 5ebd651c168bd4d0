"""Programs that a test needs and Debian packages."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Unavailable(Exception):
    """This machine cannot have what a test needs; the text says why."""


def provide(programs: Sequence[str], packages: Sequence[str]) -> None:
    """Have the programs, installing the packages where root and apt can. Raises Unavailable."""
    if os.geteuid() != 0:
        raise Unavailable(f"{programs[0]} needs root here")
    # Test processes beside this one may want the same, and apt has one at a time.
    with open(Path(tempfile.gettempdir(), "nemo-simplerl-apt.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(shutil.which(program, path=PATH) for program in programs):
            return
        if shutil.which("apt-get") is None:
            raise Unavailable(f"{' and '.join(packages)}: not installed, and there is no apt-get")
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-qq", *command],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode:
                raise Unavailable(f"apt-get could not install {' and '.join(packages)}: {done.stderr[-500:]}")
