"""Alarms on histories written by hand."""

from dataclasses import replace

from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.guard.alarms import Alarms, alarms

CONFIG = compose(["experiment=quickstart"])
LIMITS = replace(CONFIG.trainer.alarms, window=4, spike_factor=10.0, min_entropy=0.02, min_reward_share=0.1)
REWARD = replace(CONFIG.reward, correct=1.0, incorrect=-0.5, no_answer=-1.0)


def _found(history, now):
    return set(alarms(history, now, LIMITS, REWARD))


def test_a_loss_above_ten_times_the_median_is_a_spike_and_ten_times_is_none():
    history = [{"critic/value_loss": loss} for loss in (9.0, 0.1, 0.2, 0.3, 0.4)]  # the median of the last 4 is 0.25
    assert _found(history, {"critic/value_loss": 2.51}) == {"critic/value_loss"}
    assert _found(history, {"critic/value_loss": 2.49}) == set()
    assert _found(history[:3], {"critic/value_loss": 99.0}) == set()  # too little to be held against


def test_a_step_without_a_finite_number_raises_nothing_and_counts_for_nothing():
    history = [{"actor/grad_norm": 1.0}, {"actor/grad_norm": None}, {}] * 4
    assert _found(history, {"actor/grad_norm": None}) == set()
    assert _found(history, {"actor/grad_norm": float("nan")}) == set()
    assert _found(history, {"actor/grad_norm": 11.0}) == {"actor/grad_norm"}


def test_entropy_near_zero_is_told_of_a_policy_that_had_some():
    had = [{"actor/entropy": 0.5}] * 4
    assert _found(had, {"actor/entropy": 0.019}) == {"actor/entropy"}
    assert _found(had, {"actor/entropy": 0.021}) == set()
    assert _found([{"actor/entropy": 0.03}] * 4, {"actor/entropy": 0.019}) == set()
    assert _found(had[:3], {"actor/entropy": 0.019}) == set()  # the window of 4 is not full


def _rewards(*means):
    *before, now = [{"reward/mean": mean} for mean in means]
    return _found(before, now)


def test_a_reward_that_stays_at_no_answer_is_told_once_something_was_learned():
    learned = (0.0, -0.3, -0.2, -0.1)  # 0.0 is 1.0 above the floor; a tenth of it is -0.9
    assert _rewards(*learned, -0.91, -0.95, -0.92) == {"reward/mean"}
    assert _rewards(*learned, -0.91, -0.95, -0.89) == set()
    assert _rewards(*learned, -0.91, -0.95) == set()  # two steps may be chance
    assert _rewards(*(-0.9,) * 8, -1.0, -1.0, -1.0) == set()


def test_steps_of_one_sample_are_no_collapse_before_a_whole_window_of_them_is():
    assert _rewards(1.0, -1.0) == set()
    assert _rewards(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0) == set()
    assert _rewards(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0, -1.0) == {"reward/mean"}


def test_an_alarm_is_told_once_also_when_the_run_was_resumed_after_it():
    rows = [{"actor/entropy": 0.5}] * 4 + [{"actor/entropy": 0.01}]
    told = Alarms(LIMITS, REWARD)
    assert [told.check(row) for row in rows[:4]] == [[]] * 4
    (text,) = told.check(rows[4])
    assert text.startswith("actor/entropy is 0.01 nats after 0.5")
    assert told.check(rows[4]) == []
    assert Alarms(LIMITS, REWARD, rows).check({"actor/entropy": 0.001}) == []
    assert len(Alarms(LIMITS, REWARD, rows[:4]).check({"actor/entropy": 0.001})) == 1


def test_alarms_of_a_single_step_are_told_at_once_and_once():
    told = Alarms(LIMITS, REWARD, more=lambda row: {"kind": "nothing was learnt"} if row.get("idle") else {})
    assert [told.check({}), told.check({"idle": 1}), told.check({"idle": 1})] == [[], ["nothing was learnt"], []]
