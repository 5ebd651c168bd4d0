"""The report on a run that its watchdog ends: likely culprits, and where every rank was, with its stacks."""

import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nemo_simplerl.trainer.guard.heartbeats import Frames, Heartbeat

AGENT = -1  # instead of a rank: torchrun's agent, which hosts the store
_SHOWN = 8  # innermost frames of a rank's main thread
_GAVE_UP = re.compile("gloo/transport|collective operation timeout")  # in the errors of a collective that others fail


@dataclass(frozen=True)
class Culprit:
    """A rank that probably caused the end of the run, or `AGENT`."""

    rank: int
    why: str


def culprits(
    beats: Mapping[int, Heartbeat],
    lifeless: Mapping[int, str],
    exceeds: Callable[[Heartbeat], bool] = lambda beat: False,
) -> list[Culprit]:
    """The ranks to blame, in this order: the dead or frozen ones; else the one that failed first, unless it gave up
    waiting for others; else those that left; else those in no collective while others wait in one; else the one that
    gave up first. None where all ranks do the same.

    lifeless: the ranks that are dead or frozen, and in words what is known of each. A wait for a GPU hides the
    collective that the GPU waits in. exceeds: whether a rank is past a limit of its own. Where roles live on ranks of
    their own they wait for each other by design: a rank that is at work is to blame only past its limits.
    """
    if lifeless:
        return [Culprit(rank, why) for rank, why in sorted(lifeless.items())]
    failed = sorted((beat.failure.order, rank) for rank, beat in beats.items() if beat.failure is not None)
    first = [Culprit(rank, f"failed first: {beats[rank].failure.text}") for _, rank in failed[:1]]
    gave_up = {rank for _, rank in failed if _GAVE_UP.search(beats[rank].failure.text)}
    if first and first[0].rank not in gave_up:
        return first
    left = [rank for rank, beat in beats.items() if beat.status == "left"]
    if left:
        return [Culprit(rank, "left while others were at work") for rank in sorted(left)]
    waiting = sorted(rank for rank, beat in beats.items() if beat.in_collective or rank in gave_up)
    busy = [rank for rank in sorted(beats) if rank not in waiting and beats[rank].failure is None]
    if any(beat.roles for beat in beats.values()):
        busy = [rank for rank in busy if exceeds(beats[rank])]
    if waiting and busy:
        others = ", ".join(f"{rank}{_roles(beats[rank])}" for rank in waiting)
        verb = "waits" if not gave_up else "gave up waiting"
        return [Culprit(k, f"is at {beats[k].where}, and rank {others} {verb} for it in a collective") for k in busy]
    return first


def report(alarm: str, beats: Mapping[int, Heartbeat], blamed: Sequence[Culprit], *, every_thread: bool) -> str:
    """The report as text: the culprits, then where every rank was.

    every_thread: with the whole stacks of all threads, else the innermost frames of the main thread.
    """
    lines = ["watchdog: this run is stuck or has lost a rank, and ends here.", f"  {alarm}"]
    lines += [f"  culprit: {named(culprit.rank, beats.get(culprit.rank))} {culprit.why}" for culprit in blamed]
    first = [culprit.rank for culprit in blamed]
    for rank in [*first, *sorted(set(beats) - set(first))]:
        if beat := beats.get(rank):
            lines += _rank_lines(rank, beat, every_thread)
    return "\n".join(lines) + "\n"


def named(rank: int, beat: Heartbeat | None = None) -> str:
    """`rank 1 (pid 7 on node)`, as far as known; `rank 1 (critic) (pid 7 on node)` where roles have their own ranks."""
    return with_roles(rank, beat) + (f" (pid {beat.process.pid} on {beat.host})" if beat else "")


def with_roles(rank: int, beat: Heartbeat | None) -> str:
    """`rank 1`, or `rank 1 (critic)` where roles have ranks of their own."""
    if rank == AGENT:
        return "torchrun's agent"
    return f"rank {rank}" + ("" if beat is None else _roles(beat))


def _roles(beat: Heartbeat) -> str:
    return f" ({', '.join(beat.roles)})" if beat.roles else ""


def _rank_lines(rank: int, beat: Heartbeat, every_thread: bool) -> list[str]:
    collective = ", in a collective" if beat.in_collective else ""
    place = f"rank {rank}{_roles(beat)}, pid {beat.process.pid} on {beat.host}"
    if beat.failure is not None:
        lines = [f"{place}: failed in {beat.failure.where or 'no phase'}"]
        return lines + ["    " + line for line in beat.failure.traceback.splitlines()]
    lines = [f"{place}: {beat.where}{collective}"]
    threads = beat.stacks if every_thread else {name: frames[-_SHOWN:] for name, frames in beat.stacks.items()}
    for name, frames in threads.items():
        if every_thread:
            lines.append(f"  thread {name}")
        if every_thread or name == "MainThread":
            lines += ["    " + line for line in frames]
    return lines if beat.stacks else [*lines, "    (no stack: it did not answer)"]


def stacks() -> tuple[dict[str, Frames], bool]:
    """The stack of every thread of this process by its name, and whether the main thread waits in a collective."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    found: dict[str, Frames] = {}
    in_collective = False
    for ident, frame in sys._current_frames().items():
        summary = traceback.extract_stack(frame)
        name = names.get(ident, f"thread {ident}")
        found["MainThread" if ident == main else f"{name} ({ident})"] = [
            f"{entry.filename}:{entry.lineno} in {entry.name}: {entry.line}" for entry in summary
        ]
        if ident == main:
            in_collective = is_collective(summary)
    return found, in_collective


def is_collective(summary: Sequence[traceback.FrameSummary]) -> bool:
    """Whether the innermost frames are torch's collectives, or Megatron waits for a message between stages."""
    if any("torch/distributed/" in entry.filename for entry in summary[-3:]):
        return True
    innermost = summary[-1]
    return "megatron/core/" in innermost.filename and ".wait(" in (innermost.line or "")
