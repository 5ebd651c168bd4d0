"""A run with a reward server is the same as with its own workers, also where the server fails on the way."""

import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.ranks import run_ranks
from support.servers import reward_server
from support.small_run import SMALL, books, few_problems, train_here

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def overrides(tmp_path):
    """A small run of eight steps on a few problems."""
    return [*SMALL, *few_problems(tmp_path), "trainer.max_steps=8"]


def _run(overrides: list[str], token: str | None) -> None:
    if token is not None:
        os.environ["SIMPLERL_REWARD_TOKEN"] = token
    train_here(overrides)


@contextmanager
def _killed_after_step(step: int, run_dir: Path):
    """A server that is killed once a run has logged `step`, and started again on its port two seconds later."""
    with ExitStack() as stack:
        server = stack.enter_context(reward_server(token=TOKEN))
        events = []

        def disturb():
            metrics = run_dir / "metrics.jsonl"
            while not (metrics.exists() and len(metrics.read_text().splitlines()) > step):
                time.sleep(0.01)
            server.process.kill()
            server.process.wait()
            events.append(("killed after", len(metrics.read_text().splitlines())))
            time.sleep(2)
            stack.enter_context(reward_server(token=TOKEN, port=server.port))
            events.append(("back after", len(metrics.read_text().splitlines())))

        thread = threading.Thread(target=disturb)
        thread.start()
        yield server.url, events
        thread.join(timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_server_killed_and_restarted_amid_a_run_leaves_the_run_as_it_was(tmp_path, overrides, world_size):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    run_ranks(_run, world_size, [*overrides, f"trainer.run_dir={calm}"], None)
    with _killed_after_step(1, rough) as (url, events):
        run_ranks(_run, world_size, [*overrides, f"trainer.run_dir={rough}", f"reward.url={url}"], TOKEN)
    assert books(rough) == books(calm)
    (_, lines_before), (_, lines_after) = events
    assert lines_after - lines_before <= 1 and lines_after < 9, "the run did not wait for the server"


def test_a_run_that_finds_no_server_ends_at_once_naming_the_address(tmp_path, overrides):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        arguments = [*overrides, f"trainer.run_dir={tmp_path / 'run'}", f"reward.url={url}"]
        with pytest.raises(AssertionError, match=f"ValueError: rank 0: no reward server can be used at {url}"):
            run_ranks(_run, 2, arguments, None)
