"""Word from the first rank to ranks that wait for it without a limit: through the store, since collectives time out."""

import json
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import _get_default_store

from nemo_simplerl.parallel.waits import waiting

_LONGER_THAN_ANY_RUN = timedelta(days=365)


def leave_word(name: str, value: Any) -> None:
    """Tell every rank that waits for the word `name`, or will, what JSON can hold. Once in a world, on one rank."""
    _get_default_store().set(_key(name), json.dumps(value))


def wait_for_word(name: str) -> Any:
    """What a rank has left as the word `name`, once it has. `name` is also that of this wait for the watchdog.

    There is no limit: what ends the wait when that rank dies is the watchdog, or the end of the store with its host.
    """
    store = _get_default_store()
    with waiting(name):
        store.wait([_key(name)], _LONGER_THAN_ANY_RUN)
        return json.loads(store.get(_key(name)))


def _key(name: str) -> str:
    return f"simplerl/word/{name}"
