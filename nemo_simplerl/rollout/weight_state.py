"""Which weights an engine holds: a version, or the reason why nothing may be sampled."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class WeightState:
    """The version of an engine's weights, which only a refit that ran to its end sets; until then there is none."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._refusal = "it has no weights yet"
        self._running = threading.Lock()

    @property
    def version(self) -> int | None:
        return self._version

    def require(self) -> int:
        """Return the version. Raises RuntimeError with the reason when there is none."""
        if self._version is None:
            raise RuntimeError(f"the engine refuses to generate: {self._refusal}; call refit(buckets, version) first.")
        return self._version

    def invalidate(self, reason: str) -> None:
        """Hold no version, for this reason, until a refit succeeds. Voids a refit that is running."""
        self._version, self._refusal = None, reason

    @contextmanager
    def replacing(self, version: int) -> Iterator[None]:
        """Use as a context around the replacement of all weights: no version inside, `version` on exit.

        Raises RuntimeError when another replacement is running, which is then void too, and when this one was
        invalidated before its end.
        """
        if not self._running.acquire(blocking=False):
            self.invalidate(f"its refit to version {version} began before another had ended")
            raise RuntimeError(f"refit to version {version}: another refit of this engine is still running.")
        try:
            unfinished = f"its refit to version {version} did not complete"
            self.invalidate(unfinished)
            yield
            if self._refusal is not unfinished:
                raise RuntimeError(f"refit to version {version} is void: {self._refusal}.")
            self._version = version
        finally:
            self._running.release()
