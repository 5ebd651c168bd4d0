"""Processes of this machine, read from Linux's /proc. Without /proc their state is unknown and none are found."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

_PROC = Path("/proc")
_STATES = {"Z": "ended", "X": "ended", "T": "stopped by a signal", "t": "stopped by a debugger"}


@dataclass(frozen=True)
class Process:
    """A process, told apart by its start time from a later one with the same id."""

    pid: int
    started: int  # clock ticks since boot; 0 where there is no /proc


def this_process() -> Process:
    """The process that calls."""
    stat = _stat(os.getpid())
    return Process(os.getpid(), int(stat[19]) if stat else 0)


def machine() -> str:
    """An id of boot and process namespace, within which process ids are unique: containers may share a host name."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return gethostname()


def state(process: Process) -> str:
    """`ended`, `stopped by a signal`, `stopped by a debugger` or `running`; `unknown` without /proc."""
    if not process.started:
        return "unknown"
    stat = _stat(process.pid)
    if stat is None or int(stat[19]) != process.started:
        return "ended"
    return _STATES.get(stat[0], "running")


def descendants(process: Process) -> list[Process]:
    """The process's children, their children and so on; none once it has ended, since they then have another parent."""
    if state(process) in ("ended", "unknown"):
        return []
    children: dict[int, list[Process]] = {}
    for folder in _PROC.glob("[0-9]*"):
        if stat := _stat(int(folder.name)):
            children.setdefault(int(stat[1]), []).append(Process(int(folder.name), int(stat[19])))
    found, parents = [], [process.pid]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += [child.pid for child in below]
    return found


def kill(process: Process) -> None:
    """Send SIGKILL to the process, unless it has ended."""
    if state(process) not in ("ended", "unknown"):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat after the command name, see proc_pid_stat(5): 0 state, 1 parent, 19 start time."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (OSError, ValueError):
        return None
    return text.rpartition(")")[2].split()
