"""The warm start, interrupted and resumed."""

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from nemo_simplerl.cli.main import main as simplerl
from nemo_simplerl.config.load import compose, load
from nemo_simplerl.files import NotSaved
from nemo_simplerl.model.conversion import shards
from nemo_simplerl.trainer.guard.stop import Stopping
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.setup.world import join_world
from nemo_simplerl.trainer.start import start_training
from nemo_simplerl.trainer.warm_start.run import StoppedEarly, warm_start
from nemo_simplerl.trainer.warm_start.saves import settings_texts
from support.ranks import run_ranks
from support.small_run import SMALL, books, few_problems, leave_bad_updates, train_here


class BrokenOff(Exception):
    pass


def _warm_start(overrides: list[str], breaks_at: str) -> tuple[list[str], bool]:
    """The messages, and whether it came to the end; broken off at the message that begins with `breaks_at`."""
    config = load(overrides, world_size=int(os.environ["WORLD_SIZE"]))
    messages: list[str] = []

    def show(text: str) -> None:
        messages.append(text)
        if breaks_at and text.startswith(breaks_at):
            raise BrokenOff

    # As if every rank were the first: all are broken off at the same message.
    with join_world(config) as world, messages_to(show, is_first_rank=True):
        try:
            warm_start(config, world.actor)
        except BrokenOff:
            return messages, False
    return messages, True


def _overrides(folder: Path, data: list[str], *more: str) -> list[str]:
    sizes = [
        "sft.global_batch_size=4",
        "sft.micro_batch_size=2",
        "sft.epochs=1",
        "sft.save_every=4",
        "sft.eval_every=3",
    ]
    places = [f"trainer.run_dir={folder}", f"sft.output={folder}/sft", "trainer.async_save=false"]
    return [*SMALL, *data, *sizes, *places, *more]


def _books(run_dir: Path) -> list[dict[str, float]]:
    """The lines of warm_start.jsonl without their times."""
    lines = [json.loads(line) for line in (run_dir / "warm_start.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("sft_time/")} for line in lines]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_warm_start_goes_on_where_it_was_broken_off_and_ends_with_the_same_weights(tmp_path, world_size):
    data = few_problems(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert all(done for _, done in run_ranks(_warm_start, world_size, _overrides(whole, data), ""))
    found = run_ranks(_warm_start, world_size, _overrides(broken, data), "warm start: update 6/")
    assert not any(done for _, done in found)
    assert (broken / "sft.checkpoints/step_000004").is_dir() and not (broken / "sft").exists()
    found = run_ranks(_warm_start, world_size, _overrides(broken, data), "")
    assert all(done and "warm start: resumed after update 4" in messages for messages, done in found)
    weights = [(folder / "sft/model.safetensors").read_bytes() for folder in (whole, broken)]
    assert weights[0] == weights[1]
    assert _books(broken) == _books(whole) and len(_books(whole)) == 11
    assert not (broken / "sft.checkpoints").exists()


def _warm_start_apart(overrides: list[str], stops_after: int | None) -> str:
    """How the warm start ends on this rank, in words."""
    updates = []

    def safe_point() -> None:
        updates.append(1)
        if len(updates) == stops_after:
            raise Stopping("asked to")

    with join_world(load(overrides, world_size=int(os.environ["WORLD_SIZE"]))) as world:
        try:
            folder = warm_start(load(overrides, world_size=world.size), world.actor, safe_point=safe_point)
            return f"{Path(folder).name} after {len(updates)}"
        except StoppedEarly as stopped:
            return f"stopped after {stopped.update}, {stopped}"
        except ValueError as error:
            return f"refused: {error}"


def test_ranks_without_the_actor_wait_for_it_and_end_as_it_does(tmp_path):
    data = few_problems(tmp_path)
    apart = ["placement.actor=0-1", "placement.critic=2", "placement.engine=0-1"]
    whole, split = (_overrides(tmp_path / name, data, "sft.save_every=0") for name in ("whole", "split"))
    split += apart
    assert run_ranks(_warm_start_apart, 2, whole, None) == ["sft after 9"] * 2
    # Training goes wrong before its first update, is stopped, and comes to its end.
    refused = run_ranks(_warm_start_apart, 3, [*split, "sft.global_batch_size=96"], None)
    assert len(set(refused)) == 1 and "leaves 40 examples, fewer than sft.global_batch_size=96" in refused[0]
    assert run_ranks(_warm_start_apart, 3, split, 5) == ["stopped after 5, asked to"] * 3
    assert run_ranks(_warm_start_apart, 3, split, None) == ["sft after 4", "sft after 4", "sft after 0"]
    weights = [(tmp_path / name / "sft/model.safetensors").read_bytes() for name in ("whole", "split")]
    assert weights[0] == weights[1]


def _on_a_full_disk(overrides: list[str]) -> tuple[list[str], str, list[str]]:
    """The messages, what is told where the disk refuses the model, and what is left; it then comes to its end."""
    config, messages = load(overrides, world_size=1), []

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with join_world(config) as world, messages_to(messages.append, is_first_rank=True):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(NotSaved) as refused:
            patch.setattr(shards, "convert", refuse)
            warm_start(config, world.actor)
        left = [path.name for path in Path(config.trainer.run_dir).iterdir() if "sft" in path.name]
        warm_start(config, world.actor)
    return messages, str(refused.value), left


def test_examples_left_over_and_a_model_that_the_disk_refuses_are_told_and_the_same_command_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    sizes = ["sft.global_batch_size=12", "sft.save_every=2"]
    ((messages, told, left),) = run_ranks(_on_a_full_disk, 1, _overrides(run_dir, few_problems(tmp_path), *sizes))
    assert any("4 of 40 examples are left over in every epoch, too few for an update" in text for text in messages)
    assert told.startswith(f"sft.output={run_dir}/sft was NOT written: No space left on device. {run_dir} has ")
    assert told.endswith("start the same command again: it goes on after update 2.")
    assert left == ["sft.checkpoints"]
    assert "warm start: resumed after update 2" in messages
    assert (run_dir / "sft/config.json").is_file() and not (run_dir / "sft.checkpoints").exists()


def _trained_to_its_end(overrides: list[str]) -> bool:
    return start_training(load(overrides, world_size=int(os.environ["WORLD_SIZE"])))


def test_a_run_that_is_stopped_in_its_warm_start_saves_and_goes_on_to_the_same_end(tmp_path):
    data = few_problems(tmp_path)
    whole, stopped = (_overrides(tmp_path / name, data, "trainer.max_steps=1") for name in ("whole", "stopped"))
    assert run_ranks(_trained_to_its_end, 2, whole) == [True, True]
    assert run_ranks(_trained_to_its_end, 2, [*stopped, "trainer.max_time=00:00:00:01"]) == [False, False]
    told = json.loads((tmp_path / "stopped/stopped.json").read_text())
    assert told["step"] == 0 and told["updates_in_step"] >= 1 and "max_time" in told["reason"]
    assert (tmp_path / f"stopped/sft.checkpoints/step_{told['updates_in_step']:06d}").is_dir()
    leave_bad_updates(tmp_path / "stopped", "step_000011_sft_1")
    assert run_ranks(_trained_to_its_end, 2, stopped) == [True, True]
    assert list((tmp_path / "stopped/bad_updates").iterdir()) == []
    assert not (tmp_path / "stopped/stopped.json").exists()
    assert _books(tmp_path / "stopped") == _books(tmp_path / "whole")
    assert books(tmp_path / "stopped") == books(tmp_path / "whole")


def _alone(overrides: list[str], stopped_by: int | None) -> int:
    """The exit status of `simplerl sft`, which gets a signal once an update is written down."""
    config = load(overrides, world_size=1)

    def send() -> None:
        while not (Path(config.trainer.run_dir) / "warm_start.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), stopped_by)

    if stopped_by is not None:
        threading.Thread(target=send).start()
    return simplerl(["sft", *overrides])


def test_the_warm_start_alone_stops_at_a_signal_saves_and_goes_on(tmp_path):
    overrides = _overrides(tmp_path / "run", few_problems(tmp_path), "sft.save_every=0")
    assert run_ranks(_alone, 1, overrides, signal.SIGTERM) == [os.EX_TEMPFAIL]
    told = json.loads((tmp_path / "run/stopped.json").read_text())
    assert told["step"] == 0 and 1 <= told["updates_in_step"] < 10 and told["reason"] == "SIGTERM"
    assert run_ranks(_alone, 1, overrides, None) == [0]
    assert (tmp_path / "run/sft/config.json").is_file() and not (tmp_path / "run/stopped.json").exists()
    assert not (tmp_path / "run/running.json").exists()
    messages = (tmp_path / "run/messages.jsonl").read_text()
    assert f"warm start: resumed after update {told['updates_in_step']}" in messages


@pytest.mark.parametrize("changed", ["settings", "examples"])
def test_a_checkpoint_of_other_settings_or_examples_is_left_out(tmp_path, changed):
    data = few_problems(tmp_path)
    run_ranks(_warm_start, 1, _overrides(tmp_path / "run", data), "warm start: update 6/")
    more = ["sft.optim.lr=1e-4"] if changed == "settings" else []
    if changed == "examples":
        lines = (tmp_path / "sft.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "sft.jsonl").write_text("".join(lines[1:] + lines[:1]))
        with pytest.raises(AssertionError, match=r"sft.jsonl: its contents have changed since the run in"):
            run_ranks(_warm_start, 1, _overrides(tmp_path / "run", data), "")
        more = ["trainer.resume_allow=[data.sft_path]"]
    ((messages, done),) = run_ranks(_warm_start, 1, _overrides(tmp_path / "run", data, *more), "")
    assert done and any("begun with other settings and is left out" in text for text in messages)
    assert (tmp_path / "run/sft.checkpoints.other_1/step_000004/manifest.json").is_file()


def test_a_project_that_moves_has_the_same_settings_and_those_of_older_versions_are_known(tmp_path):
    def texts(place: object, *more: str) -> tuple[str, str]:
        paths = [f"model.path={place}/base", f"data.train_path={place}/t.jsonl", f"data.sft_path={place}/s.jsonl"]
        return settings_texts(compose([*paths, f"sft.output={place}/sft", f"trainer.run_dir={place}/run", *more]))

    here, there, relative = texts(tmp_path), texts("/there"), texts("../x")
    assert here[0] == there[0] == relative[0]
    assert "('model.path', '../x/base')" in relative[1] and "('sft.output', '../x/sft')" in relative[1]
    assert texts(tmp_path, "sft.optim.lr=1e-4")[0] != here[0]


def test_a_folder_in_the_place_of_the_result_is_refused_before_the_work(tmp_path):
    data = few_problems(tmp_path)
    (tmp_path / "sft").mkdir()
    with pytest.raises(AssertionError, match=r"sft exists and holds no model\. Remove it"):
        run_ranks(train_here, 1, _overrides(tmp_path, data))
