"""The watchdog: a run whose rank died, froze, failed or is stuck ends on every rank, and says which it was.

Each rank has two threads of it. One exchanges signs of life (beats.py) and may block on the store; the other judges,
and needs nothing but its own process to end it. No collective is used: those are what hangs.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from socket import gethostname
from typing import Any, NoReturn

from nemo_simplerl.config.schema import TrainerConfig
from nemo_simplerl.parallel.waits import Waits, waiting
from nemo_simplerl.trainer.guard import processes
from nemo_simplerl.trainer.guard.beats import Beat, Exchange, Failure, Seen, connect, host_of_ranks
from nemo_simplerl.trainer.guard.postmortem import AGENT, culprits, named, report, stacks

STATUS = 70  # EX_SOFTWARE: of every rank that the watchdog ends
REPORT = "watchdog.txt"  # in the run directory
_GRACE_S = 3.0  # for the news of an end to travel, before the lack of a word counts against a rank
_GATHER_S = 5.0  # for the others' stacks
_LONGEST_PERIOD_S = 2.0
_generations = count()  # a process may join several worlds, one after the other, through one store
_on_duty: "Watchdog | None" = None


@dataclass(frozen=True)
class Limits:
    dead_after_s: float
    unchanged_s: float  # without a name entered or left
    by_name: Mapping[str, float]

    def broken(self, beat: Beat) -> str | None:
        """What a living rank has been at for too long."""
        for name, age in beat.waits:
            if age > self.by_name.get(name, float("inf")):
                return f"has been in {name} for {age:.0f} s; trainer.watchdog.limits_s.{name}={self.by_name[name]:g}"
        if beat.unchanged_s > self.unchanged_s and not any(name in self.by_name for name, _ in beat.waits):
            return f"has been at {beat.where}; trainer.distributed_timeout_s={self.unchanged_s:g}"
        return None


@contextmanager
def watched(trainer: TrainerConfig, rank: int, world_size: int) -> Iterator[None]:
    """Watch all that is done inside. Every rank enters together. An error that leaves is told to the others."""
    global _on_duty
    if not trainer.watchdog.enabled:
        yield
        return
    _on_duty = dog = Watchdog(trainer, rank, world_size, waiting)
    try:
        with failures_told():
            yield
    finally:
        _on_duty = None
        dog.stop()


@contextmanager
def failures_told() -> Iterator[None]:
    """Tell the other ranks of an error at once, and not when all that is open here has been closed.

    Not of wrong input (ValueError), which every rank finds for itself, nor of what is no error.
    """
    try:
        yield
    except Exception as error:
        if _on_duty is not None and not isinstance(error, ValueError):
            _on_duty.failed(error)
        raise


class Watchdog:
    """On duty from the first line to `stop`. A world of one exchanges nothing and watches its limits alone."""

    def __init__(self, trainer: TrainerConfig, rank: int, world_size: int, waits: Waits):
        settings = trainer.watchdog
        self._rank, self._waits, self._path = rank, waits, Path(trainer.run_dir) / REPORT
        self._limits = Limits(settings.dead_after_s, trainer.distributed_timeout_s, settings.limits_s)
        self._period_s = min(_LONGEST_PERIOD_S, settings.dead_after_s / 10)
        if rank == 0:
            self._path.unlink(missing_ok=True)  # of an earlier attempt
        self._me = Beat(0, processes.this_process(), processes.machine(), gethostname(), "running", [], 0.0)
        self._lock = threading.Lock()  # three threads write into it
        self._ended = threading.Event()
        self._failures: dict[int, float] = {}  # when each rank's was first heard of
        self._exchange: Exchange | None = None
        if world_size > 1:
            store = connect(settings.dead_after_s, next(_generations))
            self._exchange = Exchange(store, rank, world_size, self._speak, self._period_s)
            self._exchange.start()
            self._exchange.meet(settings.dead_after_s)
        self._thread = threading.Thread(target=self._judge, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The last word of this rank, and silence."""
        self._ended.set()
        if self._me.failure is None:
            self._say(status="left")
        if self._exchange is not None:
            self._exchange.stop(_GRACE_S)

    def failed(self, error: Exception) -> None:
        """Tell of an error of the main thread, once; where another rank is behind it, the judge ends this process."""
        if self._me.failure is not None or self._exchange is None:
            return
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        failure = Failure(0, text, self._waits.raised_in, "".join(traceback.format_exception(error)))
        self._say(status="failed", failure=failure)
        self._exchange.tell_now(_GRACE_S)
        # A rank that died breaks the collectives of the others: the judge gets the time to find it.
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and not self._all_failed_so():
            time.sleep(0.05)

    def _say(self, **changes: Any) -> Beat:
        with self._lock:
            self._me = me = replace(self._me, **changes)
        return me

    # On the exchange's thread.

    def _speak(self) -> Beat:
        now = time.monotonic()
        return self._say(
            count=self._me.count + 1,
            waits=[(wait.name, now - wait.since) for wait in self._waits.open],
            unchanged_s=now - self._waits.changed,
        )

    # On the judge's thread.

    def _judge(self) -> None:
        woken = time.monotonic()
        resumed = woken
        while not self._ended.wait(self._period_s / 2):
            now = time.monotonic()
            if now - woken > self._limits.dead_after_s / 2:
                resumed = now  # this process was frozen itself: what it last saw of the others is old
            woken = now
            if self._exchange is None:
                self._speak()
            if now - resumed > self._period_s and (alarm := self._alarm(now)) and not self._ended.is_set():
                self._end(alarm)

    def _alarm(self, now: float) -> str | None:
        for seen in self._others().values():
            if seen.beat.alarm is not None:
                return seen.beat.alarm
        if broken := self._limits.broken(self._me):
            return f"alarm of rank {self._rank}: it {broken}."
        if self._exchange is None:
            return None
        if lifeless := self._lifeless(now):
            return f"alarm of rank {self._rank}: " + "; ".join(f"{named(r)} {why}" for r, why in lifeless.items()) + "."
        return self._alarm_of_ends(now)

    def _alarm_of_ends(self, now: float) -> str | None:
        """Of ranks that ended with a word, while this one has work."""
        for rank, seen in self._others().items():
            age, failure, mine = now - seen.at, seen.beat.failure, self._me.failure
            heard_s = 0.0 if failure is None else now - self._failures.setdefault(rank, now)
            # Time for this rank to fail of itself, and for that one to show its traceback.
            if failure is not None and mine is None and heard_s > 2 * _GRACE_S:
                return f"alarm of rank {self._rank}: rank {rank} failed."
            if failure is not None and mine is not None and failure.text != mine.text and self._order(rank) == 1:
                return f"alarm of rank {self._rank}: it failed after rank {rank} had."
            if seen.beat.status != "running" and age > self._limits.dead_after_s:
                return f"alarm of rank {self._rank}: rank {rank} left {age:.0f} s ago."
        return None

    def _lifeless(self, now: float) -> dict[int, str]:
        """Ranks that are dead or frozen, and what is known of each."""
        assert self._exchange is not None
        silence_s, dead_after_s = now - self._exchange.last_round, self._limits.dead_after_s
        is_broken = self._exchange.lost is not None and silence_s > _GRACE_S / 2
        found: dict[int, str] = {}
        for rank, seen in self._others().items():
            if seen.beat.status != "running":
                continue
            state = processes.state(seen.beat.process) if seen.beat.machine == self._me.machine else "unknown"
            age = now - seen.at
            if state == "ended" and (age > _GRACE_S or self._exchange.lost or self._me.failure is not None):
                found[rank] = f"is dead: its process has ended, {age:.0f} s after its last word"
            elif age > dead_after_s and (silence_s < dead_after_s / 2 or state.startswith("stopped")):
                words = "" if state == "unknown" else f", its process is {state}"
                found[rank] = f"gave no sign of life for {age:.0f} s{words}"
        if not found and (is_broken or silence_s > dead_after_s):
            host = 0 if host_of_ranks() else AGENT
            found[host] = f"hosts the store of the ranks, which cannot be used ({self._exchange.lost or 'no answer'})"
        return found

    def _end(self, alarm: str) -> NoReturn:
        """Report, take what this rank started along, and go."""
        threads, in_collective = stacks()
        self._say(alarm=alarm, stacks=threads, in_collective=in_collective)
        try:
            lifeless = self._lifeless(time.monotonic()) if self._exchange is not None else {}
            if self._exchange is not None:
                self._gather(lifeless)
            self._write(alarm, lifeless)
            if self._exchange is not None:
                self._say(is_told=True)
                self._exchange.tell_now(_GATHER_S)
        finally:
            try:
                self._kill()
            finally:
                os._exit(STATUS)

    def _gather(self, lifeless: Mapping[int, str]) -> None:
        """Wait for the others' stacks; a rank that is not the lowest waits for that one's report too."""
        assert self._exchange is not None
        deadline = time.monotonic() + _GATHER_S
        while time.monotonic() < deadline and self._exchange.lost is None:
            self._exchange.tell_now(_GATHER_S / 4)
            alive = {
                rank: seen.beat
                for rank, seen in self._others().items()
                if rank not in lifeless and seen.beat.status == "running"
            }
            if all(beat.stacks for beat in alive.values()) and (
                self._rank < min(alive, default=self._rank + 1) or any(beat.is_told for beat in alive.values())
            ):
                return

    def _write(self, alarm: str, lifeless: Mapping[int, str]) -> None:
        """The report, by the first rank that comes: the others find the file."""
        beats = {rank: seen.beat for rank, seen in self._others().items()} | {self._rank: self._me}
        if self._order(self._rank) and self._me.failure is not None:
            beats[self._rank] = replace(self._me, failure=replace(self._me.failure, order=self._order(self._rank)))
        blamed = culprits(beats, lifeless)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "x") as file:
                file.write(report(alarm, beats, blamed, every_thread=True))
        except FileExistsError:
            return
        except OSError as error:
            alarm += f" ({self._path} cannot be written: {error.strerror})"
        print(report(alarm, beats, blamed, every_thread=False), file=sys.stderr, end="", flush=True)

    def _kill(self) -> None:
        """The frozen ranks of this machine, what they started, and what this one did.

        A rank that failed gets the time to show its traceback and go.
        """
        now = time.monotonic()
        lifeless = self._lifeless(now) if self._exchange is not None else {}
        here = [
            seen.beat.process
            for rank, seen in self._others().items()
            if seen.beat.machine == self._me.machine and (rank in lifeless or seen.beat.status == "failed")
        ]
        doomed = [child for process in [*here, self._me.process] for child in processes.descendants(process)]
        while time.monotonic() - now < _GRACE_S and any(processes.state(process) == "running" for process in here):
            time.sleep(0.05)
        for process in [*here, *doomed]:
            processes.kill(process)

    def _others(self) -> dict[int, Seen]:
        seen = {} if self._exchange is None else dict(self._exchange.seen)
        return {rank: seen[rank] for rank in sorted(seen) if rank != self._rank}

    def _order(self, rank: int) -> int:
        """Which failure of the run this rank's was, as the store counts; 0: none, or not told yet."""
        seen = None if self._exchange is None else self._exchange.seen.get(rank)
        return 0 if seen is None or seen.beat.failure is None else seen.beat.failure.order

    def _all_failed_so(self) -> bool:
        """Whether every rank failed with this one's words: then none is behind it."""
        others = self._others().values()
        return bool(others) and all(
            seen.beat.failure is not None
            and self._me.failure is not None
            and seen.beat.failure.text == self._me.failure.text
            for seen in others
        )
