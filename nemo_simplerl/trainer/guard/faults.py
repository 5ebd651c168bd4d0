"""Faults on demand, which test on real processes that a run survives them.

SIMPLERL_FAULTS holds them, separated by semicolons: ACTION@POINT#N[,rank=R][,seconds=S][,name=SIGNAL]. A fault strikes
when the rank (every rank where none is given) reaches the fault point for the N-th time, N counting from 1:

    kill@actor_update#3,rank=1; delay@reward#2,seconds=5; fail@checkpoint.rename#1; signal@rollout#2,name=TERM

Actions: `kill` (SIGKILL to itself) and `stop` (SIGSTOP), `hang` (sleeps for good), `delay` (`seconds`), `fail`
(OSError: no space left on device), `signal` (`name`, TERM, USR1 or INT, to itself).

Points: the beginning of each phase of a step (config.phases), and

    critic.update       before each update of the critic
    actor.update        before each update of the actor
    checkpoint.write    before each file of a checkpoint, on the thread that writes it
    checkpoint.rename   before a complete checkpoint gets its name; on rank 0
    checkpoint.latest   before `latest` names it; on rank 0
    journal.write       before the head of a step's journal; on the first rank that samples
    log.metrics         before a line of metrics.jsonl; on rank 0
"""

import errno
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from nemo_simplerl.config.phases import PHASES

VARIABLE = "SIMPLERL_FAULTS"
POINTS = (
    *PHASES,
    "critic.update",
    "actor.update",
    "checkpoint.write",
    "checkpoint.rename",
    "checkpoint.latest",
    "journal.write",
    "log.metrics",
)
_SIGNALS = {"TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "INT": signal.SIGINT}
_FAULT = re.compile(r"(\w+)@([\w.]+)#([1-9]\d*)((?:,\w+=[\w.]+)*)")
_NEEDS = {"kill": None, "stop": None, "hang": None, "delay": "seconds", "fail": None, "signal": "name"}


@dataclass(frozen=True)
class Fault:
    """One fault: what happens at which visit to which point."""

    action: str
    point: str
    count: int  # of the visits to the point, from 1
    rank: int | None  # None: every rank
    seconds: float = 0.0
    name: str = ""  # of the signal


class Faults:
    """The faults of one rank, and how often each point was visited. Threads may reach points at the same time."""

    def __init__(self, faults: Iterable[Fault] = ()):
        self._faults = {(fault.point, fault.count): fault for fault in faults}
        self._visits: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def parse(cls, text: str, rank: int) -> "Faults":
        """The faults in `text` that strike on this rank. Raises ValueError where the text is not as described above."""
        faults = [_parse_fault(part.strip()) for part in text.split(";") if part.strip()]
        return cls(fault for fault in faults if fault.rank in (None, rank))

    @property
    def visits(self) -> dict[str, int]:
        """How often each point was reached."""
        return dict(self._visits)

    def reach(self, point: str) -> None:
        """Count a visit to the point and do what a fault asks for there. Raises OSError for `fail`."""
        with self._lock:
            self._visits[point] += 1
            fault = self._faults.get((point, self._visits[point]))
        if fault is not None:
            _ACTIONS[fault.action](fault)


_installed: Faults | None = None  # in this process


def fault_point(name: str) -> None:
    """Let the installed faults strike at the point `name`; does nothing while none are. On any thread.

    Raises OSError for `fail`.
    """
    if (faults := _installed) is not None:
        faults.reach(name)


@contextmanager
def installed(faults: Faults) -> Iterator[Faults]:
    """Give every `fault_point` of this process to `faults`; those installed before come back at the end."""
    global _installed
    before, _installed = _installed, faults
    try:
        yield faults
    finally:
        _installed = before


def _parse_fault(text: str) -> Fault:
    match = _FAULT.fullmatch(text)
    if match is None:
        _refuse(text, "it is not of the form ACTION@POINT#N[,rank=R][,seconds=S][,name=SIGNAL]")
    action, point, count, options = match.groups()
    given = dict(option.split("=") for option in options.split(",")[1:])
    if action not in _NEEDS:
        _refuse(text, f"the actions are {', '.join(_NEEDS)}")
    if point not in POINTS:
        _refuse(text, f"the points are {', '.join(POINTS)}")
    needed = {_NEEDS[action]} - {None}
    if not needed <= given.keys() <= needed | {"rank"}:
        _refuse(text, f"{action} takes {' and '.join(sorted(map(str, needed | {'rank'})))} and nothing else")
    if given.get("name", "TERM") not in _SIGNALS:
        _refuse(text, f"the signals are {', '.join(_SIGNALS)}")
    try:
        rank = int(given["rank"]) if "rank" in given else None
        return Fault(action, point, int(count), rank, float(given.get("seconds", 0)), given.get("name", ""))
    except ValueError:
        _refuse(text, "rank is a whole number and seconds a number")


def _refuse(text: str, reason: str) -> NoReturn:
    raise ValueError(f"{VARIABLE} holds {text!r}, which cannot be read: {reason}.")


def _hang(fault: Fault) -> None:
    while True:
        time.sleep(3600)


def _fail(fault: Fault) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"fault at {fault.point}")


_ACTIONS: dict[str, Callable[[Fault], None]] = {
    "kill": lambda fault: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda fault: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": _hang,
    "delay": lambda fault: time.sleep(fault.seconds),
    "fail": _fail,
    "signal": lambda fault: os.kill(os.getpid(), _SIGNALS[fault.name]),
}
