"""Standard streams that nobody need listen to: a command goes on where the reader of its output is gone."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

# What tells that nobody is at the other end any more. Any other error of a stream passes: a full disk, a slow reader.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ESHUTDOWN, errno.ECONNRESET)


class PatientStream:
    """A text stream whose `write` and `flush` never raise OSError.

    Text that a full disk or a full pipe refuses is left out. Where the other end is closed (`| head`, a terminal that
    is gone), the stream leads to nowhere from then on, and `on_lost` is called.
    """

    def __init__(self, stream: TextIO, on_lost: Callable[[], None]):
        self._stream, self._on_lost = stream, on_lost
        self.refusal: OSError | None = None  # the last one of text that is left out

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def writelines(self, lines) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            if error.errno not in _GONE:
                self.refusal = error
                return
            # What is buffered can be flushed at the end of the process, too.
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            on_lost, self._on_lost = self._on_lost, lambda: None
            on_lost()


@contextmanager
def patient_streams(on_lost: Callable[[], None] = lambda: None) -> Iterator[PatientStream]:
    """Make sys.stdout and sys.stderr patient while the context lasts; `on_lost` is called once output is unread.

    Yields standard output.

    Descriptors 0 to 2 that are closed are opened on nothing first: a file of the run would get their numbers, and with
    them whatever a library prints.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    before = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w") for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = PatientStream(out, on_lost), PatientStream(err, lambda: None)  # type: ignore[assignment]
    try:
        yield sys.stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
