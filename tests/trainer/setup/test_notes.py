"""What a run does not read is told when it begins, and nothing of a run that reads all of its settings."""

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.placement import Places
from nemo_simplerl.trainer.setup.notes import ahead_notes, unread_notes


def _notes(*overrides: str) -> list[str]:
    return unread_notes(compose(["experiment=quickstart", *overrides]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("algo=rloo", "algo.advantage=rloo trains no critic: the keys of critic, algo.gae_lambda and algo.value_clip"),
        ("algo=vapo", "algo.gae_length_alpha=1 sets lambda: algo.gae_lambda is not read"),
        ("algo.policy_loss=cispo", "algo.ratio_eps is not read"),
        ("reward.function=mine.py:f", "earns on which it fails; algo.reward_clip=10 bounds its numbers"),
    ],
)
def test_settings_without_effect_are_told(override, told):
    (note,) = _notes(override)
    assert told in note


def test_a_run_that_reads_all_of_its_settings_is_told_nothing():
    assert _notes() == []


def test_sampling_ahead_on_the_actors_ranks_is_told_to_gain_nothing():
    ahead, shared, apart = compose(["experiment=quickstart", "rollout.ahead=1"]), range(2), range(2, 4)
    for places in (Places(shared, shared, shared), Places(shared, apart, shared)):
        (note,) = ahead_notes(ahead, places)
        assert "placement.engine" in note
    assert ahead_notes(ahead, Places(shared, shared, apart)) == []
    assert ahead_notes(compose(["experiment=quickstart"]), Places(shared, shared, shared)) == []
