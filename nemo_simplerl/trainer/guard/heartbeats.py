"""Heartbeats: the state of each rank, exchanged through a store on a thread of its own.

The store is the one the ranks met in, over a connection that the main thread does not share: its own blocks while it
waits. Under torchrun the agent hosts the store, and it outlives every rank; without, it goes with the first rank.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

import torch.distributed as dist

from nemo_simplerl.parallel.waits import is_for_others
from nemo_simplerl.trainer.guard.processes import Process

Frames = list[str]  # one line a frame, innermost last


@dataclass(frozen=True)
class Failure:
    """The exception that a rank failed with."""

    order: int  # 1 failed first; 0 until the store has counted it
    text: str
    where: str  # which phase and wait
    traceback: str


@dataclass(frozen=True)
class Heartbeat:
    """The state of one rank. Seconds are durations by its own clock, so that no two clocks are compared."""

    count: int
    process: Process
    machine: str  # the same where `process` means the same
    host: str  # its name, for the report
    status: str  # "running", "failed" or "left"
    waits: list[tuple[str, float]]  # name and age, outermost first
    unchanged_s: float  # since one of them was entered or left
    roles: list[str] = field(default_factory=list)  # that live on it; none where all live on all ranks
    failure: Failure | None = None
    alarm: str | None = None
    has_reported: bool = False  # whether it has written the report
    in_collective: bool = False
    stacks: dict[str, Frames] = field(default_factory=dict)  # by thread; once there is an alarm

    @property
    def waits_for_others(self) -> bool:
        """Whether the innermost of its waits, by its name, is one for other ranks."""
        return bool(self.waits) and is_for_others(self.waits[-1][0])

    @property
    def where(self) -> str:
        """The names it is in and the age of the innermost: `rollout > engine.generate for 12 s`."""
        names = " > ".join(name for name, _ in self.waits) or "outside the phases"
        return f"{names} for {self.waits[-1][1] if self.waits else self.unchanged_s:.0f} s"


@dataclass(frozen=True)
class Received:
    """The last heartbeat of another rank."""

    heartbeat: Heartbeat
    at: float  # time.monotonic() of this rank when its count last changed


def encode_heartbeat(beat: Heartbeat) -> str:
    """The heartbeat as JSON; `decode` is its inverse."""
    return json.dumps(asdict(beat))


def decode_heartbeat(text: str | bytes) -> Heartbeat:
    """The heartbeat that `encode` wrote."""
    values = json.loads(text)
    failure = values.pop("failure")
    return Heartbeat(
        **values
        | {
            "process": Process(**values["process"]),
            "failure": None if failure is None else Failure(**failure),
            "waits": [(name, age) for name, age in values["waits"]],
        }
    )


def is_hosted_by_rank_0() -> bool:
    """Whether the store is in the process of rank 0, as without torchrun's agent."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def connect(timeout_s: float, generation: int) -> dist.Store:
    """A new connection to the store that torchrun's environment names. generation: of the watchdog in this process."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"simplerl/watchdog/{attempt}/{generation}", store)


class HeartbeatExchange:
    """Publishes `make_heartbeat()` every `period_s` seconds and keeps the last heartbeat of every rank in `seen`.

    Its thread waits for no other rank.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        make_heartbeat: Callable[[], Heartbeat],
        period_s: float,
    ):
        self._store, self._rank, self._make_heartbeat, self._period_s = store, rank, make_heartbeat, period_s
        self._keys = [str(other) for other in range(world_size)]
        self._kicked, self._stopping = threading.Event(), threading.Event()
        self._rounds = self._order = 0
        self.seen: dict[int, Received] = {}
        self.last_round = time.monotonic()
        self.lost: str | None = None  # why the store can no longer be used
        self._thread = threading.Thread(target=self._run, name="watchdog-beats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_for_all(self, timeout_s: float) -> None:
        """Wait for the first heartbeat of every rank: of a rank that dies before it, not even the process is known."""
        deadline = time.monotonic() + timeout_s
        while len(self.seen) < len(self._keys) and self.lost is None and time.monotonic() < deadline:
            self._kicked.set()
            time.sleep(0.02)

    def exchange_now(self, timeout_s: float) -> bool:
        """Publish a heartbeat made after this call and read those of the others.

        Returns whether that was done within `timeout_s`.
        """
        wanted, deadline = self._rounds + 2, time.monotonic() + timeout_s  # one round may be half over
        while self._rounds < wanted and self.lost is None and time.monotonic() < deadline:
            self._kicked.set()
            time.sleep(0.02)
        return self._rounds >= wanted

    def stop(self, timeout_s: float) -> None:
        """Publish a last heartbeat and end the thread, waiting for it `timeout_s` at most."""
        self._stopping.set()
        self._kicked.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._round()
                self._kicked.wait(self._period_s)
                self._kicked.clear()
            self._publish()
        except Exception as error:  # the watchdog's other thread acts on it: nobody catches what this one raises
            self.lost = f"{type(error).__name__}: {str(error).splitlines()[0]}"

    def _publish(self) -> None:
        beat = self._make_heartbeat()
        if beat.failure is not None:
            self._order = self._order or self._store.add("failures", 1)
            beat = replace(beat, failure=replace(beat.failure, order=self._order))
        self._store.set(str(self._rank), encode_heartbeat(beat))

    def _round(self) -> None:
        self._publish()
        if self._store.check(self._keys):
            for rank, text in enumerate(self._store.multi_get(self._keys)):
                beat, now = decode_heartbeat(text), time.monotonic()
                before = self.seen.get(rank)
                is_new = before is None or before.heartbeat.count != beat.count
                self.seen[rank] = Received(beat, now if is_new else before.at)
        self.last_round = time.monotonic()
        self._rounds += 1
