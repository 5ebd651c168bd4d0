"""A run that is paid by a function of the user's, and one whose function fails."""

import json
from types import SimpleNamespace

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose, load
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.setup.inputs import compare_inputs
from support.ranks import run_ranks
from support.small_run import SMALL, few_problems, train_here

REWARD = """
def reward(prompts, completions, completion_ids, question, **columns):
    assert question[0] in prompts[0]
    return [0.25 * len(completion_ids[0])]

def with_metrics(solution_str, extra_info):
    return {"score": len(solution_str) % 3, "is_even": len(solution_str) % 2 == 0}

def broken(queries, labels):
    return labels[0]["missing"]
"""


@pytest.fixture
def overrides(tmp_path):
    (tmp_path / "mine.py").write_text(REWARD)
    return [*SMALL, *few_problems(tmp_path), "trainer.max_steps=1", f"trainer.run_dir={tmp_path}/run"]


@pytest.mark.slow
def test_the_functions_numbers_are_the_rewards_and_its_other_numbers_are_metrics(tmp_path, overrides):
    overrides.append(f"reward.function={tmp_path}/mine.py:with_metrics")
    run_ranks(train_here, 2, overrides)
    rows = [json.loads(line) for line in (tmp_path / "run/rollouts/step_000001.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [len(row["response"]) % 3 for row in rows]
    metrics = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["reward/mean"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))
    even = sum(len(row["response"]) % 2 == 0 for row in rows) / len(rows)
    assert metrics["reward/is_even"] == pytest.approx(even)
    assert metrics["reward/crash_share"] == 0.0
    assert compare_inputs(load(overrides, world_size=1)) == ([], [])
    (tmp_path / "mine.py").write_text(REWARD + "\n# changed")
    ((problem,), _) = compare_inputs(load(overrides, world_size=1))
    assert "reward.function=" in problem and "its contents have changed" in problem


@pytest.mark.slow
def test_a_function_that_fails_on_everything_ends_the_run_with_its_traceback(tmp_path, overrides):
    with pytest.raises(AssertionError, match="mine.py:broken failed on everything(?s:.*)string indices must be"):
        run_ranks(train_here, 1, [*overrides, f"reward.function={tmp_path}/mine.py:broken"])


def test_a_function_that_fits_no_form_is_refused_before_the_run_starts(tmp_path, overrides):
    (tmp_path / "mine.py").write_text("def reward(text): return 1")
    with pytest.raises(ConfigErrors, match="reward.function=.* takes \\(text\\), which is none of verl's"):
        load([*overrides, f"reward.function={tmp_path}/mine.py:reward"], world_size=1)


def test_grades_of_the_journal_belong_to_the_function_that_gave_them():
    sampling = SamplingParams(n=4, max_tokens=8, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())

    def key(digest):
        config = compose(["experiment=quickstart", "reward.function=mine.py:f"])
        facts = {"initial_weights": "", "sent_version": 0, "_update_sizes": [64, 64]}
        roles = SimpleNamespace(config=config, sampling=sampling, grader=SimpleNamespace(digest=digest), **facts)
        return Roles._key(roles, [], 1, [])

    assert key("one") == key("one")
    assert key("one").settings_digest != key("two").settings_digest, "mine.py has changed since"
    assert key("one").request_digest == key("two").request_digest
