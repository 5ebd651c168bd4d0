"""One process at a time writes into a folder: a second one is told who holds it, and a dead holder does not count.

The lock is a POSIX record lock (fcntl.lockf) on FOLDER/.lock. The kernel drops it however its process ends, by SIGKILL
too, and processes that were forked from the holder do not have it. Over NFS it is kept by the server: it holds between
machines, and that of a machine that died runs out with its lease (NFSv4).

FOLDER/running.json says who holds it. Where the file system has no such locks, or keeps them to one machine (NFS with
nolock), it decides as well: on the holder's machine by whether that process lives, on another by whether the file is
still touched, as the holder does every few seconds.
Imports no torch: a second process is refused before that loads.
"""

import errno
import fcntl
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import gethostname

from nemo_simplerl.config.schema import Config
from nemo_simplerl.files import atomic_write
from nemo_simplerl.trainer.guard import processes
from nemo_simplerl.trainer.guard.processes import Process
from nemo_simplerl.trainer.warm_start.folder import checkpoints_of

log = logging.getLogger(__name__)

LOCK = ".lock"  # in the folder, as the other
RUNNING = "running.json"
BEAT_S = 5.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a folder."""

    pid: int
    started: int  # clock ticks since boot: see processes.Process
    machine: str  # see processes.machine
    host: str
    since: str  # local time there
    command: str

    @property
    def in_words(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} ({self.command})"


@dataclass(frozen=True)
class Patience:
    """Seconds in which a holder that left no word of its end may still be found dead."""

    silence: float = 30.0  # without a touch in so long, a holder on another machine is dead
    lease: float = 120.0  # in which an NFS server lets go of the locks of a dead machine; typically 90
    exit: float = 3.0  # in which a killed process of this machine lets go of its locks


PATIENCE = Patience()


@contextmanager
def held_outputs(config: Config) -> Iterator[None]:
    """Hold the run directory, and what a warm start writes elsewhere, while the context lasts. On the first rank alone.

    Raises ValueError where another process holds one of them, or where it cannot be written.
    """
    run_dir, output = Path(config.trainer.run_dir), config.sft.output
    with held(run_dir, "trainer.run_dir"):
        is_elsewhere = output is not None and not Path(output).resolve().is_relative_to(run_dir.resolve())
        if is_elsewhere and not (Path(str(output)) / "config.json").is_file():
            with held(checkpoints_of(str(output)), "sft.output"):
                yield
        else:
            yield


@contextmanager
def held_by_first_rank(output: Path) -> Iterator[None]:
    """Hold the folder of an evaluation while the context lasts; other ranks than the first hold nothing. Errors of
    `held`."""
    with held(output, "--out") if os.environ.get("RANK", "0") == "0" else nullcontext():
        yield


@contextmanager
def held(folder: Path, key: str, patience: Patience = PATIENCE) -> Iterator[None]:
    """Hold `folder`, which is made where it is missing, while the context lasts; `key` names it in messages.

    Raises ValueError where another process holds it, or where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ValueError(
            f"{key}={folder} cannot be written: {error.strerror} ({error.filename}). Give {key}=FOLDER of your own, or "
            "make that one writable."
        ) from error
    ended = threading.Event()
    try:
        is_locked = _lock(descriptor)
        holder = _holder_of(folder, patience_s=1.0 if is_locked is False else 0.0)
        if is_locked is False and _comes_free(descriptor, holder, folder, patience):
            is_locked, holder = True, _holder_of(folder, patience_s=0.0)
        if is_locked is False or (holder is not None and _lives(holder, folder, is_locked is True, patience.silence)):
            who = "another process" if holder is None else holder.in_words
            raise ValueError(
                f"{key}={folder} is in use by {who}. Wait for the end of that process, stop it with kill -TERM, or "
                f"choose another {key}."
            )
        with suppress(OSError):  # without it, a second process is still kept out, and only not told by whom
            atomic_write(folder / RUNNING, json.dumps(asdict(_me())) + "\n")
        threading.Thread(target=_touch, args=(folder / RUNNING, ended), name="lock", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            with suppress(OSError):
                (folder / RUNNING).unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether this process has the lock now; None where the file system has none."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _comes_free(descriptor: int, holder: Holder | None, folder: Path, patience: Patience) -> bool:
    """Whether this process got the lock, which another one has, within the patience due to a holder that may be dead;
    a holder that touches its file meanwhile is alive."""
    is_elsewhere = holder is not None and holder.machine.split()[0] != processes.machine().split()[0]
    wait_s = patience.lease if is_elsewhere else patience.exit
    if holder is not None and is_elsewhere:
        log.warning(
            f"{folder} is locked by {holder.in_words}; waiting for up to {wait_s:g} s for a sign of its life, or for "
            "the file system to let go of the lock"
        )
    before, deadline = _touched(folder), time.monotonic() + wait_s
    while time.monotonic() < deadline:
        time.sleep(min(0.5, wait_s / 10))
        if _lock(descriptor):
            return True
        if _touched(folder) not in (before, None):  # None: it is just ending
            return False
    return False


def _holder_of(folder: Path, patience_s: float) -> Holder | None:
    """The holder that running.json names; None where it names none, after waiting for it for `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return Holder(**json.loads((folder / RUNNING).read_text()))
        except (OSError, ValueError, TypeError):
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)


def _lives(holder: Holder, folder: Path, has_lock: bool, watch_s: float) -> bool:
    """Whether a holder that left no word of its end is alive; `has_lock`: whether this process got the lock."""
    here = processes.machine()
    if has_lock and holder.machine.split()[0] == here.split()[0]:
        return False  # the kernel, which is the same one, has taken the lock from the holder
    if holder.machine == here:
        return processes.state(Process(holder.pid, holder.started)) != "ended"
    log.warning(f"{folder} was held by {holder.in_words}; watching for up to {watch_s:g} s whether that one lives")
    before, deadline = _touched(folder), time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, watch_s / 10))
        if (now := _touched(folder)) != before:
            return now is not None  # gone: the holder has just ended
    return False


def _touched(folder: Path) -> int | None:
    """When running.json was last touched, in nanoseconds; None where it is gone."""
    try:
        with open(folder / RUNNING, "rb") as file:  # opened: NFS then asks the server, and not its cache
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)


def _me() -> Holder:
    process = processes.this_process()
    return Holder(
        pid=process.pid,
        started=process.started,
        machine=processes.machine(),
        host=gethostname(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        command=" ".join(["simplerl", *sys.argv[1:3]]),
    )
