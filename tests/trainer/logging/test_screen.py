"""Messages of a run: shown on its first rank as they are, and nowhere else."""

import io
import logging
from functools import partial

import pytest
from rich.console import Console

from nemo_simplerl.trainer.logging.progress import Progress
from nemo_simplerl.trainer.logging.screen import messages_to, print_line

log = logging.getLogger("nemo_simplerl.trainer.somewhere")
PACKAGE = logging.getLogger("nemo_simplerl")


def test_messages_of_info_and_above_are_shown_on_the_first_rank_and_dropped_on_others(caplog, capfd):
    shown = {}
    for rank in (0, 1):
        shown[rank] = []
        with messages_to(shown[rank].append, is_first_rank=rank == 0):
            log.debug("a detail")
            log.info("50% [done]")
            log.warning("a failure")
    assert shown == {0: ["50% [done]", "a failure"], 1: []}
    assert caplog.messages == [], "other handlers of the process get none of them"
    assert capfd.readouterr() == ("", "")


def test_what_it_attaches_is_gone_afterwards_also_where_showing_fails(caplog):
    def show(text: str) -> None:
        raise BrokenPipeError(text)

    before = (PACKAGE.handlers[:], PACKAGE.level, PACKAGE.propagate)
    with pytest.raises(BrokenPipeError), messages_to(show, is_first_rank=True):
        log.info("nobody reads it")
    assert (PACKAGE.handlers, PACKAGE.level, PACKAGE.propagate) == before
    log.warning("later")
    assert caplog.messages == ["later"]


def test_on_a_pipe_a_message_is_one_line_and_on_a_terminal_it_stays_above_the_moving_one():
    text = "resumed after step 3 from [runs/x] " + "x" * 200
    screens = {}
    for terminal in (False, True):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=120, color_system=None)
        progress = Progress(console)
        progress.start(10, done=3)
        with messages_to(partial(print_line, console), is_first_rank=True):
            log.info(text)
        progress.step(4, {"reward/mean": 0.5})
        progress.close()
        screens[terminal] = screen.getvalue()
    assert screens[False] == f"{text}\nstep 4/10  reward +0.50\n"
    assert text + "\n" in screens[True] and screens[True].rindex("step 4/10") > screens[True].index(text)
