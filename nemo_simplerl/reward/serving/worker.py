"""A reward worker: grades the items that arrive on standard input, one answer for each, until the input ends.

    python -m nemo_simplerl.reward.serving.worker MEMORY_LIMIT_MB [PARENT_PID]

A frame is a 4-byte big-endian length and that many bytes of JSON. The worker first sends `{"ready": pid}`. A
request is a list of `[gold, response]`; every item is answered by a frame of its own, `{"verdict", "parsed", "ms"}`.
An exception in the grader ends the process: the parent sees the output end and starts another worker.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from nemo_simplerl.reward.grade import Judgement

HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def encode_frame(message: Any) -> bytes:
    """The bytes of one frame. JSON in ASCII, so that a lone surrogate survives."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def read_frame(stream: BinaryIO) -> Any | None:
    """The next message of a blocking stream, or None at its end."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    body = stream.read(size)
    return json.loads(body) if len(body) == size else None


def serve(judge: Callable[[str, str], "Judgement"], memory_limit_mb: int, parent_pid: int = 0) -> None:
    """Answer requests with `judge(gold, response)` until standard input ends. Takes over the process's
    standard streams, signals and memory limit.

    With a `parent_pid`, Linux ends this process when that thread dies; with 0, only the end of the input does.
    """
    requests, answers = _claim_standard_streams()
    # Ctrl-C and a scheduler's signals reach the whole group; the owner decides when to stop, and sends SIGKILL.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _limit_memory(memory_limit_mb)
    if parent_pid:
        _die_with(parent_pid)
    _send(answers, {"ready": os.getpid()})
    while (items := read_frame(requests)) is not None:
        for gold, response in items:
            start = time.perf_counter()
            judgement = judge(gold, response)
            ms = 1000.0 * (time.perf_counter() - start)
            _send(answers, {"verdict": judgement.verdict, "parsed": judgement.parsed, "ms": ms})


def _claim_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes under new descriptors; 0 then reads /dev/null and 1 is stderr, so that a print damages no frame."""
    sys.stdout.flush()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _limit_memory(memory_limit_mb: int) -> None:
    """Bound the address space, and write no core file: a crash is routine here."""
    limit = memory_limit_mb * 1024 * 1024
    _, ceiling = resource.getrlimit(resource.RLIMIT_AS)
    if ceiling != resource.RLIM_INFINITY:
        limit = min(limit, ceiling)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with(parent_pid: int) -> None:
    """Have Linux kill this process when its parent thread ends: a hanging worker would not see the end of its input."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def _send(stream: BinaryIO, message: Any) -> None:
    stream.write(encode_frame(message))
    stream.flush()


def _main() -> None:
    from nemo_simplerl.reward.grade import judge

    memory_limit_mb, parent_pid = (*(int(word) for word in sys.argv[1:]), 0)[:2]
    serve(judge, memory_limit_mb, parent_pid)


if __name__ == "__main__":
    _main()
