"""Messages between the trainer and the engine's process: pickled plain values behind their length, over two pipes.

Plain values only, because the two ends may run other versions of Python and torch. Both ends are this package's, and
nobody else holds the pipes.
"""

import os
import pickle
import select
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")
_PROTOCOL = 4  # read by every Python that this package runs on


class Channel:
    """One end of a pair of pipes, which it owns. Raises EOFError where the other end is gone.

    A process that is forked from this one does not keep the pipes open: the other end is told when this one ends.
    """

    def __init__(self, reads: int, writes: int):
        self._reads, self._writes = reads, writes
        for end in (reads, writes):
            os.set_inheritable(end, False)
        os.register_at_fork(after_in_child=self.close)

    def send(self, message: Any, timeout_s: float | None = None) -> None:
        """Raises TimeoutError where the other end does not read for `timeout_s` seconds."""
        body = pickle.dumps(message, _PROTOCOL)
        rest = memoryview(_LENGTH.pack(len(body)) + body)
        while rest:
            self._wait([], [self._writes], timeout_s)
            try:
                # Of a pipe that has room: PIPE_BUF bytes, which are sure not to block.
                rest = rest[os.write(self._writes, rest[: select.PIPE_BUF]) :]
            except BrokenPipeError:
                raise EOFError from None

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message. Raises TimeoutError where nothing comes for `timeout_s` seconds."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, timeout_s))
        return pickle.loads(self._read(length, timeout_s))

    def close(self) -> None:
        """Close both pipes. Harmless when closed."""
        ends, self._reads, self._writes = {self._reads, self._writes} - {-1}, -1, -1
        for end in ends:
            os.close(end)

    def _read(self, size: int, timeout_s: float | None) -> bytes:
        parts = []
        while size:
            self._wait([self._reads], [], timeout_s)
            part = os.read(self._reads, min(size, 2**20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, reads: list[int], writes: list[int], timeout_s: float | None) -> None:
        if -1 in reads + writes:
            raise EOFError
        poll = select.poll()  # select.select() takes no descriptor above 1023
        for end in reads:
            poll.register(end, select.POLLIN)
        for end in writes:
            poll.register(end, select.POLLOUT)
        if not poll.poll(None if timeout_s is None else 1000 * timeout_s):
            raise TimeoutError
