"""Where a run's messages go: one handler on the package's logger, and a plain line of a rich console.

Modules log as usual (`log = logging.getLogger(__name__)`, `log.info(...)`). Nothing is attached at import.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

PACKAGE = "nemo_simplerl"


@contextmanager
def messages_to(
    show: Callable[[str], None],
    *,
    is_first_rank: bool,
    keep: Callable[[logging.LogRecord], None] | None = None,
    outbox: "Outbox | None" = None,
) -> Iterator[None]:
    """Call `show` with each message that the package logs at INFO or above, on whatever thread; on other ranks than the
    first all messages are dropped, but for those that go into an outbox.

    keep: called with the record of each message before it is shown. What either raises reaches the caller of
    `log.info`. Handlers, level and propagation are put back at the end.
    """
    logger = logging.getLogger(PACKAGE)
    handler = _Messages(show, keep) if is_first_rank else logging.NullHandler()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    if outbox is not None:
        logger.addHandler(outbox)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        if outbox is not None:
            logger.removeHandler(outbox)
        logger.setLevel(level)
        logger.propagate = propagates


def print_line(console: Console, text: str) -> None:
    """Print `text` as it is, above a live progress line where the console shows one."""
    # As Text: paths and model output may hold what rich reads as markup. Unwrapped: a log has no width.
    console.print(Text(text), soft_wrap=True)


class Outbox(logging.Handler):
    """Collects messages, each with its level, until they are taken to the rank that shows them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._held: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._held.append((record.levelno, record.getMessage()))

    def drain(self) -> list[tuple[int, str]]:
        """The messages since the last call."""
        held, self._held = self._held, []
        return held


class _Messages(logging.Handler):
    def __init__(self, show: Callable[[str], None], keep: Callable[[logging.LogRecord], None] | None):
        super().__init__(logging.INFO)
        self._show, self._keep = show, keep

    def emit(self, record: logging.LogRecord) -> None:
        if self._keep is not None:
            self._keep(record)
        self._show(record.getMessage())
