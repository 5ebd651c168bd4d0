"""How often a run saves where nothing says so, a warm-up that would take all of it, and settings it tells of."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.build import objective_notes
from nemo_simplerl.trainer.consistency import sampling_notes
from nemo_simplerl.trainer.open_run import _check_length
from nemo_simplerl.trainer.run import Run

CONFIG = compose(["experiment=quickstart"])


@pytest.mark.parametrize(
    ("save_every", "total_steps", "expected"),
    [(None, 3, 1), (None, 40, 4), (None, 160, 16), (None, 10_000, 20), (0, 40, 0), (7, 40, 7)],
)
def test_by_default_a_tenth_of_the_run_is_lost_at_most(save_every, total_steps, expected):
    config = replace(CONFIG, trainer=replace(CONFIG.trainer, save_every=save_every))
    run = SimpleNamespace(config=config, total_steps=total_steps)
    assert Run.save_every.fget(run) == expected


def test_conf_leaves_the_interval_to_the_trainer():
    assert compose(["experiment=math_smoke"]).trainer.save_every is None


def test_a_warm_up_of_the_critic_that_takes_the_whole_run_is_refused():
    config = replace(CONFIG, algo=replace(CONFIG.algo, critic_warmup_steps=6))
    _check_length(config, 7, done=0)
    with pytest.raises(
        ValueError, match=r"critic_warmup_steps=6 leaves the actor none of the run's 6 steps .*=5 or less"
    ):
        _check_length(config, 6, done=0)


def test_an_end_before_the_steps_that_are_done_is_refused():
    _check_length(CONFIG, 4, done=4)
    with pytest.raises(ValueError, match="has done 5 steps, more than the 4 of this command"):
        _check_length(CONFIG, 4, done=5)


def test_a_cut_of_the_sampled_tokens_is_told_with_what_the_gate_compares():
    assert sampling_notes(CONFIG.rollout) == []
    (note,) = sampling_notes(replace(CONFIG.rollout, top_p=0.9, top_k=50))
    assert note.startswith("rollout.top_p=0.9 and rollout.top_k=50: sampling is off-policy.")
    assert "consistency gate compares" in note and "does not see the cut" in note


def test_bounds_on_ratios_that_stay_1_are_told():
    asked = replace(CONFIG, algo=replace(CONFIG.algo, ratio_eps_high=0.28, ratio_level="sequence"))
    one_update = replace(asked, actor=replace(asked.actor, global_batch_size=256))
    (note,) = objective_notes(one_update)
    assert note.startswith("algo.ratio_eps_high and algo.ratio_level=sequence: without effect, since a step has one")
    assert objective_notes(asked) == objective_notes(replace(one_update, algo=CONFIG.algo)) == []
    assert objective_notes(replace(one_update, algo=replace(asked.algo, old_logprobs="engine"))) == []
