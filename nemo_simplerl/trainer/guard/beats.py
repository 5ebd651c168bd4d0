"""Signs of life: what each rank says of itself, exchanged through a store on a thread of its own.

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

from nemo_simplerl.trainer.guard.processes import Process

Frames = list[str]  # one line a frame, innermost last


@dataclass(frozen=True)
class Failure:
    order: int  # 1 failed first; 0 until the store has counted it
    text: str
    where: str  # which phase and wait
    traceback: str


@dataclass(frozen=True)
class Beat:
    """One rank's word. Seconds are by its own clock, so that no two clocks are compared."""

    count: int
    process: Process
    machine: str  # the same where `process` means the same
    host: str  # for people
    status: str  # "running", "failed" or "left"
    waits: list[tuple[str, float]]  # name and age, outermost first
    unchanged_s: float  # since one of them was entered or left
    failure: Failure | None = None
    alarm: str | None = None
    is_told: bool = False  # it has written the report
    in_collective: bool = False
    stacks: dict[str, Frames] = field(default_factory=dict)  # by thread; once there is an alarm

    @property
    def where(self) -> str:
        """`rollout > engine.generate for 12 s`."""
        names = " > ".join(name for name, _ in self.waits) or "outside the phases"
        return f"{names} for {self.waits[-1][1] if self.waits else self.unchanged_s:.0f} s"


@dataclass(frozen=True)
class Seen:
    beat: Beat
    at: float  # time.monotonic() here when its count last changed


def encode(beat: Beat) -> str:
    return json.dumps(asdict(beat))


def decode(text: str | bytes) -> Beat:
    values = json.loads(text)
    failure = values.pop("failure")
    return Beat(
        **values
        | {
            "process": Process(**values["process"]),
            "failure": None if failure is None else Failure(**failure),
            "waits": [(name, age) for name, age in values["waits"]],
        }
    )


def host_of_ranks() -> bool:
    """Whether the store lives in the process of rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def connect(timeout_s: float, generation: int) -> dist.Store:
    """Another connection to the store of torchrun's environment."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"simplerl/watchdog/{attempt}/{generation}", store)


class Exchange:
    """Tells `speak()` every `period_s` and keeps what the others told last. The thread waits for no other rank."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, speak: Callable[[], Beat], period_s: float):
        self._store, self._rank, self._speak, self._period_s = store, rank, speak, period_s
        self._keys = [str(other) for other in range(world_size)]
        self._kicked, self._stopping = threading.Event(), threading.Event()
        self._rounds = self._order = 0
        self.seen: dict[int, Seen] = {}
        self.last_round = time.monotonic()
        self.lost: str | None = None  # why the store can no more be used
        self._thread = threading.Thread(target=self._run, name="watchdog-beats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def meet(self, timeout_s: float) -> None:
        """Wait for the first word of every rank: of one that dies without, not even the process would be known."""
        deadline = time.monotonic() + timeout_s
        while len(self.seen) < len(self._keys) and self.lost is None and time.monotonic() < deadline:
            self._kicked.set()
            time.sleep(0.02)

    def tell_now(self, timeout_s: float) -> bool:
        """Whether what `speak` says from here on is out, and the others' words are in, within the time."""
        wanted, deadline = self._rounds + 2, time.monotonic() + timeout_s  # one round may be half over
        while self._rounds < wanted and self.lost is None and time.monotonic() < deadline:
            self._kicked.set()
            time.sleep(0.02)
        return self._rounds >= wanted

    def stop(self, timeout_s: float) -> None:
        self._stopping.set()
        self._kicked.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._round()
                self._kicked.wait(self._period_s)
                self._kicked.clear()
            self._tell()
        except Exception as error:  # the judge acts on it: there is nobody to raise it to
            self.lost = f"{type(error).__name__}: {str(error).splitlines()[0]}"

    def _tell(self) -> None:
        beat = self._speak()
        if beat.failure is not None:
            self._order = self._order or self._store.add("failures", 1)
            beat = replace(beat, failure=replace(beat.failure, order=self._order))
        self._store.set(str(self._rank), encode(beat))

    def _round(self) -> None:
        self._tell()
        if self._store.check(self._keys):
            for rank, text in enumerate(self._store.multi_get(self._keys)):
                beat, now = decode(text), time.monotonic()
                before = self.seen.get(rank)
                self.seen[rank] = Seen(beat, now if before is None or before.beat.count != beat.count else before.at)
        self.last_round = time.monotonic()
        self._rounds += 1
