"""A cache of grades: the samples of one problem, in one epoch and the next, mostly repeat a few answers."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

from nemo_simplerl.reward.extract import final_answers

V = TypeVar("V")
_KEY_BYTES = 16  # the chance that two of 2^32 answers share a key is below 1e-19


def answer_key(gold: str, response: str) -> bytes:
    """A 16-byte digest of what decides a verdict: the gold answer and the final answers (else the whole response)."""
    answers = final_answers(response)
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    # The length keeps ("1", "23") apart from ("12", "3").
    digest.update(b"%d %d " % (len(gold), bool(answers)))
    digest.update((gold + (", ".join(answers) if answers else response)).encode("utf-8", "surrogatepass"))
    return digest.digest()


class GradeCache(Generic[V]):
    """An LRU cache of at most `max_entries` grades; 0 disables it. Thread-safe.

    Keys have one size, so the bound on entries also bounds memory: an entry takes about 300 bytes.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._values: OrderedDict[bytes, V] = OrderedDict()
        self._lock = threading.Lock()

    def lookup(self, keys: Iterable[bytes]) -> dict[bytes, V]:
        """The values of the keys that are in the cache."""
        found: dict[bytes, V] = {}
        with self._lock:
            for key in keys:
                if key in self._values:
                    found[key] = self._values[key]
                    self._values.move_to_end(key)
        return found

    def store(self, values: Iterable[tuple[bytes, V]]) -> None:
        """Add values by key; the least recently used make room."""
        with self._lock:
            for key, value in values:
                self._values[key] = value
                self._values.move_to_end(key)
                if len(self._values) > self._max_entries:
                    self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)
