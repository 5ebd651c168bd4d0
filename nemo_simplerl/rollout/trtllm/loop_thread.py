"""An asyncio event loop in a thread of its own, for libraries that must be awaited from code that does not await."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_GRACE_S = 5.0  # for the loop to come to its end


class Overdue(Exception):
    """The work did not end in its time."""


class LoopThread:
    """A daemon thread that runs an asyncio event loop until `close`."""

    def __init__(self, name: str):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], limit_s: float | None = None) -> T:
        """Run `work` in the loop and return its result, or raise its error. An interrupt cancels it.

        Raises Overdue, and cancels the work, when it has not ended within `limit_s` seconds.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            if not concurrent.futures.wait([future], limit_s).done:
                raise Overdue
            return future.result()
        finally:
            future.cancel()  # nothing where it has ended

    def close(self) -> None:
        """End the thread. What still runs in the loop is dropped, and a call that blocks it is left behind. Harmless
        when closed."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_GRACE_S)
        if not self._thread.is_alive() and not self._loop.is_closed():
            self._loop.close()
