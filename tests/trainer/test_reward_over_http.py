"""A run whose grades come from a reward server: the same run as with its own workers, whatever befalls the server."""

import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from test_runs import SMALL

from nemo_simplerl.config.load import load
from nemo_simplerl.data import arithmetic
from nemo_simplerl.trainer.start import start_training
from ranks import run_ranks
from servers import reward_server

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def overrides(tmp_path):
    """A small run of eight steps on a few problems."""
    paths = {f"data.{name}_path": tmp_path / f"{name}.jsonl" for name in ("train", "eval", "sft")}
    arithmetic.write_task(*paths.values(), seed=1, task=arithmetic.Task(num_train=20, num_eval=8, num_sft=40))
    return [*SMALL, *(f"{key}={path}" for key, path in paths.items()), "trainer.max_steps=8"]


def _run(overrides: list[str], world_size: int, token: str | None) -> None:
    import os

    if token is not None:
        os.environ["SIMPLERL_REWARD_TOKEN"] = token
    start_training(load(overrides, world_size=world_size))


def _books(run_dir: Path) -> dict[str, object]:
    """Metrics without timings, samples and evaluations of a run."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]
    rows = {str(path.relative_to(run_dir)): path.read_text() for path in sorted(run_dir.glob("*/step_*.jsonl"))}
    return {"metrics": metrics, "rows": rows}


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
    run_ranks(_run, world_size, [*overrides, f"trainer.run_dir={calm}"], world_size, None)
    with _killed_after_step(1, rough) as (url, events):
        run_ranks(_run, world_size, [*overrides, f"trainer.run_dir={rough}", f"reward.url={url}"], world_size, TOKEN)
    assert _books(rough) == _books(calm)
    (_, lines_before), (_, lines_after) = events
    assert lines_after - lines_before <= 1 and lines_after < 9, "the run did not wait for the server"


def test_a_run_that_finds_no_server_ends_at_once_naming_the_address(tmp_path, overrides):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        arguments = [*overrides, f"trainer.run_dir={tmp_path / 'run'}", f"reward.url={url}"]
        with pytest.raises(AssertionError, match=f"ValueError: rank 0: no reward server can be used at {url}"):
            run_ranks(_run, 2, arguments, 2, None)
