"""A reward worker: grades the items that arrive on standard input, one answer for each, until the input ends.

    python -m nemo_simplerl.reward.serving.worker MEMORY_LIMIT_MB [PARENT_PID]

A frame is a 4-byte big-endian length and that many bytes of JSON. The worker first sends `{"ready": pid}`, or
`{"unusable": why}` and ends. A request is a list of `[gold, response, ...]`; every item is answered by a frame of its
own: the fields of its judgement, such as `verdict` and `parsed`, and `ms`. An exception in the grader ends the process:
the parent sees the output end and starts another worker.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

Judge = Callable[..., Any]  # takes the parts of an item and returns a named tuple, such as grade.Judgement

HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MAX_REASON_CHARS = 8000


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


def serve(judge: Judge, memory_limit_mb: int, parent_pid: int = 0) -> None:
    """Answer requests with `judge(gold, response)` until standard input ends: see `load_and_serve`."""
    load_and_serve(lambda: judge, memory_limit_mb, parent_pid)


def load_and_serve(load: Callable[[], Judge], memory_limit_mb: int, parent_pid: int = 0) -> None:
    """Answer requests with the judge that `load` returns until standard input ends. Takes over the process's
    standard streams, signals and memory limit. Where `load` fails, the parent is told its traceback.

    With a `parent_pid`, Linux ends this process when that thread dies; with 0, only the end of the input does.
    """
    requests, answers = _claim_standard_streams()
    # Ctrl-C and a scheduler's signals reach the whole group; the owner decides when to stop, and sends SIGKILL.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _limit_memory(memory_limit_mb)
    if parent_pid:
        _die_with(parent_pid)
    try:
        judge = load()
    except (Exception, SystemExit):
        _send(answers, {"unusable": last_chars(traceback.format_exc())})
        return
    _send(answers, {"ready": os.getpid()})
    while (items := read_frame(requests)) is not None:
        for item in items:
            start = time.perf_counter()
            judgement = judge(*item)
            ms = 1000.0 * (time.perf_counter() - start)
            _send(answers, {**judgement._asdict(), "ms": ms})


def last_chars(text: str, most: int = _MAX_REASON_CHARS) -> str:
    """The end of a text, so that a frame that holds it is short."""
    return text.strip()[-most:]


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


def _math_judge() -> Judge:
    from nemo_simplerl.reward.grade import judge

    return judge


def _main() -> None:
    memory_limit_mb, parent_pid = (*(int(word) for word in sys.argv[1:]), 0)[:2]
    load_and_serve(_math_judge, memory_limit_mb, parent_pid)


if __name__ == "__main__":
    _main()
