"""The watchdog: ends a run on every rank once a rank died, froze, failed or is stuck, and reports which one.

It has two threads on each rank. One exchanges heartbeats (heartbeats.py) and may block on the store; the other judges
them, and needs nothing but its own process to end it. Neither uses collectives: those are what hangs.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from socket import gethostname
from typing import Any, NoReturn

from nemo_simplerl.config.schema import TrainerConfig
from nemo_simplerl.parallel.waits import Waits, waiting
from nemo_simplerl.trainer.guard import processes
from nemo_simplerl.trainer.guard.heartbeats import (
    Failure,
    Heartbeat,
    HeartbeatExchange,
    Received,
    connect,
    is_hosted_by_rank_0,
)
from nemo_simplerl.trainer.guard.postmortem import AGENT, culprits, report, stacks, with_roles

STATUS = 70  # EX_SOFTWARE: exit status of every rank that the watchdog ends
REPORT = "watchdog.txt"  # in the run directory
_GRACE_S = 3.0  # for the news that a rank ended to arrive, before its silence counts against it
_GATHER_S = 5.0  # for the others' stacks
_LONGEST_PERIOD_S = 2.0
_generations = count()  # a process may join several worlds, one after the other, through one store
_on_duty: "Watchdog | None" = None  # the watchdog of this process


@dataclass(frozen=True)
class PhaseLimits:
    """How long a rank may go without a heartbeat, without progress, and in one phase or wait. Seconds."""

    dead_after_s: float
    unchanged_s: float  # without a phase or wait entered or left
    by_name: Mapping[str, float]  # by phase or wait

    def exceeded(self, beat: Heartbeat) -> str | None:
        """The limit that a living rank exceeds, in words; None where it exceeds none."""
        for name, age in beat.waits:
            if age > self.by_name.get(name, float("inf")):
                return f"has been in {name} for {age:.0f} s; trainer.watchdog.limits_s.{name}={self.by_name[name]:g}"
        if beat.unchanged_s > self.unchanged_s and not any(name in self.by_name for name, _ in beat.waits):
            return f"has been at {beat.where}; trainer.distributed_timeout_s={self.unchanged_s:g}"
        return None

    def exceeded_by_wait(self, beat: Heartbeat, stuck_s: float) -> str | None:
        """As `exceeded`, of a rank whose innermost wait is for others where roles live on ranks of their own.

        Such a wait lasts as long as the work of another role, which that role's ranks answer for: it has no limit but
        one by its own name, and the time since anything changed where every rank waits, `stuck_s`.
        """
        if exceeded := self.exceeded(replace(beat, waits=beat.waits[-1:], unchanged_s=0.0)):
            return exceeded
        if stuck_s > self.unchanged_s:
            return f"has been at {beat.where}, as every rank waits; trainer.distributed_timeout_s={self.unchanged_s:g}"
        return None


@contextmanager
def watched(trainer: TrainerConfig, rank: int, world_size: int, roles: Sequence[str] = ()) -> Iterator[None]:
    """Watch this rank while the context lasts; an exception that leaves it is reported to the other ranks.

    Every rank enters together. roles: those that live on this rank, where not all live on all ranks.
    """
    global _on_duty
    if not trainer.watchdog.enabled:
        yield
        return
    _on_duty = dog = Watchdog(trainer, rank, world_size, waiting, roles)
    try:
        with report_failures():
            yield
    finally:
        _on_duty = None
        dog.stop()


@contextmanager
def report_failures() -> Iterator[None]:
    """Report an exception to the other ranks at once, before the contexts around this one are closed.

    ValueError is not reported: it stands for wrong input, which every rank finds for itself. Nor is what is no error,
    as KeyboardInterrupt.
    """
    try:
        yield
    except Exception as error:
        if _on_duty is not None and not isinstance(error, ValueError):
            _on_duty.report_failure(error)
        raise


class Watchdog:
    """Watches the run from construction until `stop`. A world of one exchanges nothing and checks only its limits."""

    def __init__(self, trainer: TrainerConfig, rank: int, world_size: int, waits: Waits, roles: Sequence[str] = ()):
        settings = trainer.watchdog
        self._rank, self._waits, self._path = rank, waits, Path(trainer.run_dir) / REPORT
        self._limits = PhaseLimits(settings.dead_after_s, trainer.distributed_timeout_s, settings.limits_s)
        self._period_s = min(_LONGEST_PERIOD_S, settings.dead_after_s / 10)
        if rank == 0:
            self._path.unlink(missing_ok=True)  # of an earlier attempt
        me = (processes.this_process(), processes.machine(), gethostname())
        self._me = Heartbeat(0, *me, "running", [], 0.0, list(roles))
        self._lock = threading.Lock()  # three threads write into it
        self._ended = threading.Event()
        self._failures: dict[int, float] = {}  # when each rank's failure was first received
        self._exchange: HeartbeatExchange | None = None
        if world_size > 1:
            store = connect(settings.dead_after_s, next(_generations))
            self._exchange = HeartbeatExchange(store, rank, world_size, self._heartbeat, self._period_s)
            self._exchange.start()
            self._exchange.wait_for_all(settings.dead_after_s)
        self._thread = threading.Thread(target=self._judge, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Publish that this rank left, and end the threads."""
        self._ended.set()
        if self._me.failure is None:
            self._update(status="left")
        if self._exchange is not None:
            self._exchange.stop(_GRACE_S)

    def report_failure(self, error: Exception) -> None:
        """Publish an exception of the main thread, once, and give the judging thread the time to end this process where
        another rank caused it."""
        if self._me.failure is not None or self._exchange is None:
            return
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        failure = Failure(0, text, self._waits.raised_in, "".join(traceback.format_exception(error)))
        self._update(status="failed", failure=failure)
        self._exchange.exchange_now(_GRACE_S)
        # A rank that died breaks the collectives of the others: the judge gets the time to find it.
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and not self._all_failed_alike():
            time.sleep(0.05)

    def _update(self, **changes: Any) -> Heartbeat:
        """Change this rank's heartbeat and return it."""
        with self._lock:
            self._me = me = replace(self._me, **changes)
        return me

    # On the exchange's thread.

    def _heartbeat(self) -> Heartbeat:
        now = time.monotonic()
        return self._update(
            count=self._me.count + 1,
            waits=[(wait.name, now - wait.since) for wait in self._waits.open],
            unchanged_s=now - self._waits.changed,
        )

    # On the judging thread.

    def _judge(self) -> None:
        woken = time.monotonic()
        resumed = woken
        while not self._ended.wait(self._period_s / 2):
            now = time.monotonic()
            if now - woken > self._limits.dead_after_s / 2:
                resumed = now  # this process was frozen itself: what it last saw of the others is old
            woken = now
            if self._exchange is None:
                self._heartbeat()
            if now - resumed > self._period_s and (alarm := self._alarm(now)) and not self._ended.is_set():
                self._end(alarm)

    def _alarm(self, now: float) -> str | None:
        for seen in self._others().values():
            if seen.heartbeat.alarm is not None:
                return seen.heartbeat.alarm
        if exceeded := self._exceeded(self._me, now):
            return f"alarm of {self._named(self._rank)}: it {exceeded}."
        if self._exchange is None:
            return None
        if lifeless := self._lifeless(now):
            causes = (f"{self._named(rank)} {why}" for rank, why in lifeless.items())
            return f"alarm of {self._named(self._rank)}: {'; '.join(causes)}."
        return self._alarm_of_ends(now)

    def _exceeded(self, beat: Heartbeat, now: float) -> str | None:
        """The limit that a rank exceeds, in words."""
        if not (beat.roles and beat.waits_for_others):
            return self._limits.exceeded(beat)
        others = [seen for seen in self._others().values() if seen.heartbeat.status == "running"]
        all_wait = self._me.waits_for_others and all(seen.heartbeat.waits_for_others for seen in others)
        ages = (self._me.unchanged_s, *(seen.heartbeat.unchanged_s + now - seen.at for seen in others))
        return self._limits.exceeded_by_wait(beat, min(ages) if all_wait else 0.0)

    def _named(self, rank: int) -> str:
        """The rank with its roles, where they have ranks of their own."""
        seen = None if self._exchange is None else self._exchange.seen.get(rank)
        return with_roles(rank, self._me if rank == self._rank else seen and seen.heartbeat)

    def _alarm_of_ends(self, now: float) -> str | None:
        """The alarm for a rank that failed or left while this one is at work; None without one."""
        for rank, seen in self._others().items():
            age, failure, mine = now - seen.at, seen.heartbeat.failure, self._me.failure
            heard_s = 0.0 if failure is None else now - self._failures.setdefault(rank, now)
            # Time for this rank to fail of itself, and for that one to show its traceback.
            if failure is not None and mine is None and heard_s > 2 * _GRACE_S:
                return f"alarm of {self._named(self._rank)}: {self._named(rank)} failed."
            if failure is not None and mine is not None and failure.text != mine.text and self._order(rank) == 1:
                return f"alarm of {self._named(self._rank)}: it failed after {self._named(rank)} had."
            if seen.heartbeat.status != "running" and age > self._limits.dead_after_s:
                return f"alarm of {self._named(self._rank)}: {self._named(rank)} left {age:.0f} s ago."
        return None

    def _lifeless(self, now: float) -> dict[int, str]:
        """The ranks that are dead or frozen, and in words what is known of each."""
        assert self._exchange is not None
        silence_s, dead_after_s = now - self._exchange.last_round, self._limits.dead_after_s
        is_broken = self._exchange.lost is not None and silence_s > _GRACE_S / 2
        found: dict[int, str] = {}
        for rank, seen in self._others().items():
            if seen.heartbeat.status != "running":
                continue
            state = processes.state(seen.heartbeat.process) if seen.heartbeat.machine == self._me.machine else "unknown"
            age = now - seen.at
            if state == "ended" and (age > _GRACE_S or self._exchange.lost or self._me.failure is not None):
                found[rank] = f"is dead: its process has ended, {age:.0f} s after its last word"
            elif age > dead_after_s and (silence_s < dead_after_s / 2 or state.startswith("stopped")):
                words = "" if state == "unknown" else f", its process is {state}"
                found[rank] = f"gave no sign of life for {age:.0f} s{words}"
        if not found and (is_broken or silence_s > dead_after_s):
            host = 0 if is_hosted_by_rank_0() else AGENT
            found[host] = f"hosts the store of the ranks, which cannot be used ({self._exchange.lost or 'no answer'})"
        return found

    def _end(self, alarm: str) -> NoReturn:
        """Write the report, kill what this rank started, and end this process."""
        threads, in_collective = stacks()
        self._update(alarm=alarm, stacks=threads, in_collective=in_collective or self._heartbeat().waits_for_others)
        try:
            lifeless = self._lifeless(time.monotonic()) if self._exchange is not None else {}
            if self._exchange is not None:
                self._gather(lifeless)
            self._write(alarm, lifeless)
            if self._exchange is not None:
                self._update(has_reported=True)
                self._exchange.exchange_now(_GATHER_S)
        finally:
            try:
                self._kill()
            finally:
                os._exit(STATUS)

    def _gather(self, lifeless: Mapping[int, str]) -> None:
        """Wait for the stacks of the others; a rank that is not the lowest waits for that one's report too."""
        assert self._exchange is not None
        deadline = time.monotonic() + _GATHER_S
        while time.monotonic() < deadline and self._exchange.lost is None:
            self._exchange.exchange_now(_GATHER_S / 4)
            alive = {
                rank: seen.heartbeat
                for rank, seen in self._others().items()
                if rank not in lifeless and seen.heartbeat.status == "running"
            }
            if all(beat.stacks for beat in alive.values()) and (
                self._rank < min(alive, default=self._rank + 1) or any(beat.has_reported for beat in alive.values())
            ):
                return

    def _write(self, alarm: str, lifeless: Mapping[int, str]) -> None:
        """Write and print the report; only the first rank to get here does, the others find its file."""
        beats = {rank: seen.heartbeat for rank, seen in self._others().items()} | {self._rank: self._me}
        if self._order(self._rank) and self._me.failure is not None:
            beats[self._rank] = replace(self._me, failure=replace(self._me.failure, order=self._order(self._rank)))
        now = time.monotonic()
        blamed = culprits(beats, lifeless, lambda beat: self._exceeded(beat, now) is not None)
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
        """Kill the frozen and failed ranks of this machine, what they started, and what this rank started.

        A rank that failed gets the time to print its traceback and end.
        """
        now = time.monotonic()
        lifeless = self._lifeless(now) if self._exchange is not None else {}
        here = [
            seen.heartbeat.process
            for rank, seen in self._others().items()
            if seen.heartbeat.machine == self._me.machine and (rank in lifeless or seen.heartbeat.status == "failed")
        ]
        doomed = [child for process in [*here, self._me.process] for child in processes.descendants(process)]
        while time.monotonic() - now < _GRACE_S and any(processes.state(process) == "running" for process in here):
            time.sleep(0.05)
        for process in [*here, *doomed]:
            processes.kill(process)

    def _others(self) -> dict[int, Received]:
        """The last heartbeats of the other ranks, in order of rank."""
        seen = {} if self._exchange is None else dict(self._exchange.seen)
        return {rank: seen[rank] for rank in sorted(seen) if rank != self._rank}

    def _order(self, rank: int) -> int:
        """The place of the rank's failure among those of the run, from 1; 0 where it has none or has not counted it."""
        seen = None if self._exchange is None else self._exchange.seen.get(rank)
        return 0 if seen is None or seen.heartbeat.failure is None else seen.heartbeat.failure.order

    def _all_failed_alike(self) -> bool:
        """Whether every rank failed with the same message as this one: then no rank caused it."""
        others = self._others().values()
        return bool(others) and all(
            seen.heartbeat.failure is not None
            and self._me.failure is not None
            and seen.heartbeat.failure.text == self._me.failure.text
            for seen in others
        )
