"""The ranks of one engine go from bucket to bucket together; what two processes do of it is in the engines' tests."""

import pytest

from nemo_simplerl.rollout.own_process.engine_group import EngineGroup


def group_beside(others: list[bool]) -> EngineGroup:
    """A group of two ranks, the other of which says in turn whether it has one more item."""
    group, answers = EngineGroup(None), iter(others)
    group.together = lambda act: [act(), next(answers)]
    return group


def test_items_come_one_at_a_time_while_every_rank_has_one():
    made = []
    items = (made.append(k) or k for k in range(3))
    for k, item in enumerate(group_beside([True, True, True, False]).in_step(items)):
        assert item == k and made == list(range(k + 1)), "the next one is made only when this one was taken"


@pytest.mark.parametrize(("mine", "others"), [(2, [True, False]), (1, [True, True])])
def test_ranks_that_are_sent_unequally_many_are_told(mine, others):
    with pytest.raises(RuntimeError, match="unequally many buckets"):
        list(group_beside(others).in_step(range(mine)))
