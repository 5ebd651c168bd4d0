"""A step that samples in rounds, stopped and killed within its second one and between its updates, ends as if alone."""

import json
import os
from pathlib import Path

import pytest

from nemo_simplerl.config.load import load
from nemo_simplerl.data.sampler import StepSampler
from nemo_simplerl.trainer import open_run
from nemo_simplerl.trainer.start import start_training
from support.grading import GraderByText
from support.ranks import run_ranks
from support.small_run import SMALL, assert_same_state, books

ROUNDS = [
    *SMALL,
    "rollout.keep_groups=mixed",
    "rollout.n_samples_per_prompt=2",
    "reward.overlong_buffer_tokens=4",
    "trainer.eval_every=0",
    "data.eval_path=null",
    "trainer.save_every=1",
    "trainer.async_save=false",
    "trainer.keep_last=9",
]


def _life(overrides: list[str], fault: str, rank: int = 0) -> tuple[bool, int]:
    """Whether a process of the run came to its end, and how many responses this rank graded in it."""
    mine = os.environ["RANK"] == str(rank)
    grader = GraderByText()
    open_run.build_grader = lambda reward: grader  # in this forked process alone
    os.environ["SIMPLERL_FAULTS"] = fault if mine else ""
    is_done = start_training(load(overrides, world_size=int(os.environ["WORLD_SIZE"])))
    return is_done, grader.graded


def _metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][1:]


def _passed(run_dir: Path) -> list[int]:
    """What the checkpoints of a run say of the prompts passed, in the order of steps."""
    files = sorted(run_dir.glob("checkpoints/step_??????/manifest.json"))
    return [json.loads(file.read_text())["prompts_passed"] for file in files]


def _visits_before(run_dir: Path, step: int) -> int:
    """Rounds of the steps before `step`, each a visit to the points `rollout` and `reward`."""
    return int(sum(line["rollout/rounds"] for line in _metrics(run_dir)[: step - 1]))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data) -> Path:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert run_ranks(_life, 1, [*data, *ROUNDS, f"trainer.run_dir={run_dir}"], "")[0][0]
    return run_dir


def test_a_run_takes_further_prompts_in_place_of_those_left_out_and_counts_them(alone):
    sampler = StepSampler(20, 4, seed=load(ROUNDS, world_size=1).trainer.seed, shuffle=True, max_rounds=10)
    position = 0
    for step, (line, passed) in enumerate(zip(_metrics(alone), _passed(alone), strict=True), 1):
        rows = [json.loads(row) for row in (alone / f"rollouts/step_{step:06d}.jsonl").read_text().splitlines()]
        count = int(line["rollout/prompts_sampled"])
        offered = list(sampler.offered(position).items())[:count]
        position = offered[-1][1]
        assert (passed, len(rows)) == (position, 2 * count)
        assert sum(row["trained_on"] for row in rows) == 8 and line["rollout/groups_left_out"] == count - 4
        assert all(row["overlong"] <= 0 and row["verdict"] for row in rows)
        assert line["reward/overlong_mean"] == pytest.approx(sum(row["overlong"] for row in rows) / len(rows))
    assert all(line["rollout/rounds"] > 1 for line in _metrics(alone)[:2]), "else what follows shows nothing"


def test_a_run_killed_and_stopped_in_second_rounds_and_between_updates_ends_as_one_left_alone(tmp_path, data, alone):
    overrides = [*data, *ROUNDS, f"trainer.run_dir={tmp_path / 'run'}"]
    before = _visits_before(alone, 2)
    with pytest.raises(AssertionError, match="died without an answer"):
        run_ranks(_life, 1, overrides, f"kill@rollout#{before + 2}")  # the second round of step 2 has not begun
    first = run_ranks(_life, 1, overrides, "signal@reward#2,name=TERM")  # it is sampled and not graded
    assert first == [(False, 0)], "the first round came from the journal"
    between = run_ranks(_life, 1, overrides, "signal@actor.update#1,name=TERM")
    assert not between[0][0] and list((tmp_path / "run/checkpoints").glob("step_000002_update_*"))
    assert run_ranks(_life, 1, overrides, "")[0][0]
    assert books(tmp_path / "run") == books(alone) and _passed(tmp_path / "run") == _passed(alone)
    assert_same_state(tmp_path / "run", alone)


@pytest.mark.long
def test_so_does_one_of_two_ranks(tmp_path, data, alone):
    whole, broken = ([*data, *ROUNDS, f"trainer.run_dir={tmp_path / name}"] for name in ("whole", "broken"))
    assert all(is_done for is_done, _ in run_ranks(_life, 2, whole, ""))
    assert _passed(tmp_path / "whole")[0] == _passed(alone)[0], "the ranks agree on what a round takes"
    before = _visits_before(tmp_path / "whole", 2)
    for fault in (f"signal@reward#{before + 2},name=TERM", "signal@actor.update#1,name=INT"):
        assert [is_done for is_done, _ in run_ranks(_life, 2, broken, fault, 1)] == [False, False]
    assert all(is_done for is_done, _ in run_ranks(_life, 2, broken, ""))
    assert books(tmp_path / "broken") == books(tmp_path / "whole")
    assert_same_state(tmp_path / "broken", tmp_path / "whole")
