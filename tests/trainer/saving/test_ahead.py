"""rollout.ahead: 1: what sampled each step; runs that are killed, stopped and resumed end as one left alone."""

import json
import os
from pathlib import Path

import pytest

from nemo_simplerl.config.load import load
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer import open_run
from nemo_simplerl.trainer.saving.record import StepKey, StepRecord
from nemo_simplerl.trainer.saving.step_state import StepState
from nemo_simplerl.trainer.start import start_training
from support.forked_runs import OF_THE_ENGINE
from support.gate import logged_messages
from support.grading import GraderByText
from support.ranks import run_ranks
from support.small_run import SMALL, assert_same_state, books

AHEAD = [
    *SMALL,
    "rollout.ahead=1",
    "rollout.consistency.policy=correct",
    "rollout.keep_groups=mixed",  # what a step takes is known when the next one is sampled
    "rollout.n_samples_per_prompt=2",
    "trainer.eval_every=0",
    "data.eval_path=null",
    "trainer.save_every=1",
    "trainer.async_save=false",
    "trainer.keep_last=9",
]


def _life(overrides: list[str], fault: str = "") -> bool:
    """Whether a process of the run came to its end."""
    os.environ["SIMPLERL_FAULTS"] = fault
    open_run.build_grader = lambda *args: GraderByText()  # in this forked process alone
    return start_training(load(overrides, world_size=int(os.environ["WORLD_SIZE"])))


def _metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _books(run_dir: Path) -> dict[str, object]:
    """All that must not differ. A resumed run has no weights to judge the engine of its first step by."""
    found = books(run_dir)
    lines = json.loads(found["metrics"])
    files = sorted(run_dir.glob("checkpoints/step_??????/manifest.json"))
    passed = [json.loads(file.read_text())["prompts_passed"] for file in files]
    metrics = [{key: line[key] for key in line if key not in OF_THE_ENGINE} for line in lines]
    return found | {"metrics": metrics, "passed": passed}


def _records(run_dir: Path) -> list[str]:
    """The records that checkpoints between steps hold."""
    files = sorted(run_dir.glob("checkpoints/step_??????/*/record.npz"))
    return [str(file.relative_to(run_dir / "checkpoints").parent) for file in files]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data) -> Path:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert run_ranks(_life, 1, [*data, *AHEAD, f"trainer.run_dir={run_dir}"]) == [True]
    return run_dir


def test_a_step_is_sampled_while_the_one_before_trains_and_its_samples_are_in_the_checkpoint(alone):
    lines = _metrics(alone)[1:]
    assert [line["rollout/lag"] for line in lines] == [0, 1, 1, 1]
    assert [line["rollout/weight_version"] for line in lines] == [0, 0, 1, 2]
    assert all(line["consistency/logprob_diff_max"] < 1e-4 and not line["consistency/tripped"] for line in lines)
    assert lines[0]["consistency/kl_k3"] < 1e-9 < lines[1]["consistency/kl_k3"]
    assert all(line["time/rollout_tokens_per_second"] > 0 for line in lines[:3])
    assert "time/rollout_tokens_per_second" not in lines[3], "nothing is sampled for a step after the last"
    assert sum(line["rollout/rounds"] for line in lines) > 5
    assert _records(alone) == ["step_000001/step", "step_000002/step", "step_000003/step"]


def test_a_run_killed_while_it_samples_updates_and_saves_and_stopped_everywhere_ends_as_one_left_alone(
    tmp_path, data, alone
):
    run_dir = tmp_path / "run"
    overrides = [*data, *AHEAD, f"trainer.run_dir={run_dir}"]
    for fault in ("kill@rollout#3", "kill@actor.update#2", "kill@checkpoint.rename#1"):
        with pytest.raises(AssertionError, match="died without an answer"):
            run_ranks(_life, 1, overrides, fault)
    assert run_ranks(_life, 1, overrides, "signal@actor.update#2,name=TERM") == [False]
    (stopped,) = (run_dir / "checkpoints").glob("step_*_update_*")
    assert sorted(path.parent.name for path in stopped.glob("*/record.npz")) == ["ahead", "step"]
    assert run_ranks(_life, 1, [*overrides, "trainer.stop_after_step=3"]) == [True]
    assert _records(run_dir)[-1] == "step_000003/step"
    assert run_ranks(_life, 1, overrides) == [True]
    assert _books(run_dir) == _books(alone)
    assert_same_state(run_dir, alone)


def test_engines_on_ranks_of_their_own_sample_the_same_and_are_resumed_as_well(tmp_path, data, alone):
    run_dir = tmp_path / "run"
    overrides = [*data, *AHEAD, "placement.engine=1", f"trainer.run_dir={run_dir}"]
    # Rank 0 trains step 1 and leaves out updates while rank 1 samples step 2 to its end.
    assert run_ranks(_life, 2, overrides, "signal@actor.update#1,name=TERM,rank=0") == [False, False]
    (stopped,) = (run_dir / "checkpoints").glob("step_*")
    assert sorted(path.parent.name for path in stopped.glob("*/record.npz")) == ["ahead", "step"]
    # Rank 1 is asked while it samples step 3: step 2 is trained to its end.
    read = int(sum(line["rollout/rounds"] for line in _metrics(alone)[1:3]))
    assert run_ranks(_life, 2, overrides, f"signal@rollout#{read + 1},name=TERM,rank=1") == [False, False]
    assert json.loads((run_dir / "stopped.json").read_text())["updates_in_step"] == 2
    with pytest.raises(AssertionError, match="died without an answer|was killed|closed"):
        run_ranks(_life, 2, overrides, "kill@actor.update#1,rank=0")
    assert run_ranks(_life, 2, overrides) == [True, True]
    assert _books(run_dir) == _books(alone)
    assert_same_state(run_dir, alone)


def test_a_step_that_was_sampled_ahead_under_other_settings_is_sampled_again():
    state = StepState()
    state.restore(
        StepRecord(StepKey(4, 2, "four samples of a prompt", "settings"), SpreadCompletions.alone(Completions.of([])))
    )
    with logged_messages() as messages:
        state.begin(StepKey(4, 3, "two samples of a prompt", "settings"))
    assert state.sampled.completions is None and not state.is_known_to_all
    assert messages == ["step 4 was sampled ahead under other settings, and is sampled again by newer weights"]
