"""The report on a run that its watchdog ends: likely culprits, and where every rank was, with its stacks."""

import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_simplerl.trainer.guard.heartbeats import Frames, Heartbeat

AGENT = -1  # instead of a rank: torchrun's agent, which hosts the store
_SHOWN = 8  # innermost frames of a rank's main thread


@dataclass(frozen=True)
class Culprit:
    """A rank that probably caused the end of the run, or `AGENT`."""

    rank: int
    why: str


def culprits(beats: Mapping[int, Heartbeat], lifeless: Mapping[int, str]) -> list[Culprit]:
    """The ranks to blame, in this order: the dead or frozen ones; else the one that failed first; else those that left;
    else those in no collective while others wait in one. None where all ranks do the same.

    lifeless: the ranks that are dead or frozen, and in words what is known of each. A wait for a GPU hides the
    collective that the GPU waits in.
    """
    if lifeless:
        return [Culprit(rank, why) for rank, why in sorted(lifeless.items())]
    failed = [(beat.failure.order, rank) for rank, beat in beats.items() if beat.failure is not None]
    if failed:
        _, rank = min(failed)
        return [Culprit(rank, f"failed first: {beats[rank].failure.text}")]
    left = [rank for rank, beat in beats.items() if beat.status == "left"]
    if left:
        return [Culprit(rank, "left while others were at work") for rank in sorted(left)]
    waiting = sorted(rank for rank, beat in beats.items() if beat.in_collective)
    if waiting and len(waiting) < len(beats):
        others = ", ".join(map(str, waiting))
        return [
            Culprit(rank, f"is at {beat.where}, and rank {others} waits for it in a collective")
            for rank, beat in sorted(beats.items())
            if rank not in waiting
        ]
    return []


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
    """`rank 1 (pid 7 on node)`, as far as known."""
    if rank == AGENT:
        return "torchrun's agent"
    return f"rank {rank}" + (f" (pid {beat.process.pid} on {beat.host})" if beat else "")


def _rank_lines(rank: int, beat: Heartbeat, every_thread: bool) -> list[str]:
    collective = ", in a collective" if beat.in_collective else ""
    place = f"rank {rank}, pid {beat.process.pid} on {beat.host}"
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
