"""Groups by hand: which are trained on, how many prompts a round takes, and what is told of those left out."""

from dataclasses import replace

import pytest

from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer.groups import Rollout, SampledGroups, chosen_groups, round_size

PROMPT = Prompt(Problem("next", "", "1", None, None), "", (5,))
ALL_RIGHT, MIXED, ALL_WRONG = (True, True), (True, False), (False, False)


def _round(*groups: tuple[bool, bool], lengths: tuple[int, int] = (1, 2)) -> Rollout:
    """Groups of two responses each, right or wrong; the score is their length."""
    flags = [is_right for group in groups for is_right in group]
    tokens = list(lengths) * len(groups)
    return Rollout(
        [Prompt(Problem(f"{i}", "", "1", None, None), "", (5,)) for i in range(len(groups))],
        SpreadCompletions.alone(
            Completions.of(
                [Completion((7,) * count, (-1.0,) * count, "", "stop", 0, i) for i, count in enumerate(tokens)]
            )
        ),
        [Grade("correct" if flag else "incorrect", "ok", 0.0) for flag in flags],
        [float(count) for count in tokens],
    )


def _sampled(
    *rounds: Rollout, wanted: int, offered: int = 9, max_rounds: int = 10, only_mixed: bool = True, **terms: float
) -> SampledGroups:
    groups = SampledGroups(1, [PROMPT] * offered, wanted, 2, only_mixed, max_rounds, lambda num_tokens: terms)
    for one in rounds:
        groups.add(*one)
    return groups


@pytest.mark.parametrize(
    ("kept", "wanted", "most", "expected"),
    [
        ([], 8, 8, 8),  # the first round
        ([True] * 4 + [False] * 4, 8, 8, 8),  # half are kept: 4 lacking / 0.5
        ([True] * 6 + [False] * 2, 8, 8, 3),  # 2 / 0.75, rounded up
        ([True] * 7 + [False], 8, 8, 2),
        ([True] + [False] * 7, 8, 8, 8),  # 56 would be expected, a round takes a batch at most
        ([False] * 8, 8, 8, 8),  # nothing tells the share
        ([True] * 6 + [False] * 2, 8, 1, 1),  # no more are on offer
        ([True] * 8, 8, 8, 0),
        ([True] * 9, 8, 8, 0),
        ([True] * 4 + [False] * 4, 8, 0, 0),  # all rounds are used
    ],
)
def test_a_round_takes_what_is_lacking_by_the_share_kept_so_far(kept, wanted, most, expected):
    assert round_size(kept, wanted, most=most) == expected


def test_the_first_kept_are_trained_on_and_the_first_others_fill_the_step():
    assert chosen_groups([False, True, False, True, True], 2) == [1, 3]  # the surplus of the last round is left out
    assert chosen_groups([False, True, False, True, False], 4) == [0, 1, 2, 3]
    assert chosen_groups([False, False, False], 2) == [0, 1]


def test_a_step_of_all_groups_takes_one_round_whatever_its_verdicts():
    groups = _sampled(wanted=2, offered=2, only_mixed=False)
    assert len(groups.next_prompts()) == 2
    groups.add(*_round(ALL_RIGHT, ALL_WRONG))
    assert groups.next_prompts() == []
    assert groups.trained.completions.held == groups.sampled.completions.held and groups.warning is None
    assert (groups.trained.prompts, *groups.trained[2:]) == (groups.sampled.prompts, *groups.sampled[2:])
    assert not [name for name in groups.metrics if "groups" in name or "rounds" in name or "overlong" in name]
    assert all("trained_on" not in row and "overlong" not in row for row in groups.rows.held)


def test_a_step_of_mixed_groups_goes_on_until_it_is_full_and_counts_what_it_left_out():
    groups = _sampled(_round(ALL_RIGHT, MIXED, ALL_WRONG), wanted=3)
    assert len(groups.next_prompts()) == 3  # 2 lacking, one of three kept: 6, and a batch at most
    assert len(replace(groups, offered=groups.offered[:4]).next_prompts()) == 1
    assert replace(groups, max_rounds=1).next_prompts() == []
    groups.add(*_round(MIXED, ALL_WRONG, MIXED))
    assert groups.next_prompts() == []
    trained = groups.trained
    assert [prompt.problem.id for prompt in trained.prompts] == ["1", "0", "2"]
    assert [grade.verdict for grade in trained.grades] == ["correct", "incorrect"] * 3
    assert trained.completions.seeds.tolist() == [2, 3, 0, 1, 4, 5] and len(trained.scores) == 6
    assert [row["trained_on"] for row in groups.rows.held] == [flag for flag in (0, 1, 0, 1, 0, 1) for _ in range(2)]
    metrics = groups.metrics
    counts = {name.partition("/")[2]: metrics[name] for name in metrics if "groups_" in name}
    assert counts == {"groups_all_correct": 1, "groups_none_correct": 2, "groups_left_out": 3, "groups_filled": 0}
    assert (metrics["rollout/rounds"], metrics["rollout/prompts_sampled"]) == (2, 6)
    assert metrics["reward/correct_share"] == 5 / 12, "of all that was sampled"
    assert groups.warning is None


def test_what_rounds_did_not_find_is_filled_with_a_word_on_why_and_what_to_try():
    partly = _sampled(_round(ALL_RIGHT, MIXED, ALL_RIGHT), wanted=3, max_rounds=1)
    assert len(partly.trained.prompts) == 3 and partly.metrics["rollout/groups_filled"] == 2
    assert "1 of 3 prompts had right and wrong responses after 1 rounds (2 had only right ones, 0" in partly.warning
    assert "harder problems" in partly.warning and "raise rollout.max_rounds" in partly.warning
    assert "it has met them all" in replace(partly, max_rounds=9).warning, "rounds were left, and no prompts"
    never = _sampled(_round(ALL_WRONG, ALL_WRONG), wanted=2).warning
    assert "learns nothing from them, nor from this step" in never and "bring easier ones" in never


def test_groups_are_mixed_by_their_verdicts_whatever_their_length_costs():
    groups = _sampled(_round(ALL_RIGHT, MIXED, lengths=(1, 9)), wanted=1, overlong=-0.5)
    assert groups.kept == [False, True], "unequal scores alone do not make a group mixed"
    assert groups.metrics["reward/overlong_mean"] == -0.5 and groups.rows.held[0]["overlong"] == -0.5
    assert (groups.rows.held[1]["verdict"], groups.rows.held[1]["reward"]) == ("correct", 8.5)


def test_a_metric_of_ones_own_reward_takes_no_name_of_a_term():
    groups = _sampled(_round(MIXED), wanted=1, overlong=-0.5)
    graded = groups.parts[0].grades
    graded[:] = [replace(grade, metrics={"overlong_mean": 7.0}) for grade in graded]
    assert groups.metrics["reward/overlong_mean"] == -0.5 and groups.metrics["reward/function_overlong_mean"] == 7.0
