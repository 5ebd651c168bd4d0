import random
import re

import pytest

from nemo_simplerl.data.sampler import StepSampler, all_rows, even_shares, require_enough, rows_of, sample_seed


def _indices(sampler: StepSampler, step: int) -> list[int]:
    """The prompts of a step, counted from 0, of a run whose steps take a batch each."""
    return list(sampler.offered(sampler.position_of(step)))


def test_an_episode_takes_each_prompt_at_most_once_and_drops_the_rest():
    sampler = StepSampler(11, 3, seed=1, shuffle=True)
    assert sampler.steps_per_episode == 3
    for episode in range(4):
        taken = [index for step in range(3) for index in _indices(sampler, 3 * episode + step)]
        assert len(taken) == len(set(taken)) == 9
        assert set(taken) <= set(range(11))
    assert [sampler.position_of(step) for step in range(7)] == [0, 3, 6, 11, 14, 17, 22]


def test_the_dropped_prompts_change_from_episode_to_episode():
    sampler = StepSampler(11, 3, seed=1, shuffle=True)
    seen = {index for step in range(30) for index in _indices(sampler, step)}
    assert seen == set(range(11))


def test_each_episode_and_each_seed_has_its_own_order():
    order = [_indices(StepSampler(50, 50, seed=seed, shuffle=True), step) for seed in (1, 2) for step in (0, 1)]
    assert len({tuple(indices) for indices in order}) == 4


def test_a_resumed_run_needs_the_step_number_alone():
    sampler = StepSampler(20, 4, seed=3, shuffle=True)
    ahead = [_indices(sampler, step) for step in range(12)]
    assert [_indices(StepSampler(20, 4, seed=3, shuffle=True), step) for step in reversed(range(12))] == ahead[::-1]


def test_the_order_is_the_same_on_every_machine():
    assert _indices(StepSampler(10, 5, seed=42, shuffle=True), 0) == [9, 5, 2, 7, 0]


@pytest.mark.parametrize(
    ("num_prompts", "shuffle", "total_steps", "told"),
    [
        (40, False, 3, "16 of 40 prompts .* of 24: they are never trained on"),
        (40, True, 1, "16 of 40 prompts .* they are never trained on"),
        (40, True, 2, "16 of 40 prompts .* other ones each time"),
        (48, False, 2, None),  # nothing is left
        (80, True, 2, None),  # the run ends within its first episode
    ],
)
def test_prompts_left_over_in_every_episode_are_counted(num_prompts, shuffle, total_steps, told):
    found = StepSampler(num_prompts, 24, seed=1, shuffle=shuffle).leftover(total_steps)
    assert found is None if told is None else re.search(told, found)


def test_the_position_after_a_step_leads_to_the_next_one_and_over_what_an_episode_leaves():
    sampler = StepSampler(11, 3, seed=1, shuffle=True)
    position = 0
    for step in range(9):
        offered = sampler.offered(position)
        assert list(offered) == _indices(sampler, step)
        position = list(offered.values())[-1]
    assert position == 31, "3 * 11, less the 2 that the third episode will leave"


def test_a_step_of_several_rounds_is_offered_distinct_prompts_and_what_it_does_not_take_comes_next():
    sampler = StepSampler(10, 2, seed=1, shuffle=True, max_rounds=3)
    first, second = (list(StepSampler(10, 10, seed=1, shuffle=True).offered(start)) for start in (0, 10))
    assert sampler.offered(0) == dict(zip(first[:6], range(1, 7), strict=True))
    assert list(sampler.offered(3)) == first[3:9]
    beyond = sampler.offered(8)  # two of this episode, and of the next one those that are not among them
    assert list(beyond)[:2] == first[8:] and list(beyond)[2:] == [i for i in second if i not in first[8:]][:4]
    assert len(set(beyond)) == 6 and list(beyond.values())[:2] == [9, 10]
    assert beyond[list(beyond)[-1]] == 10 + second.index(list(beyond)[-1]) + 1
    assert sampler.leftover(1000) is None
    assert len(StepSampler(10, 4, seed=1, shuffle=True, max_rounds=9).offered(7)) == 10, "each prompt once"


def test_as_many_prompts_as_a_step_takes_leave_none_for_a_second_round():
    require_enough(5, 5)
    with pytest.raises(ValueError, match="takes 5 prompts and there are 5, so rollout.keep_groups=mixed has no other"):
        StepSampler(5, 5, seed=1, shuffle=True, max_rounds=2)


def test_without_shuffle_the_file_order_is_kept():
    sampler = StepSampler(5, 2, seed=1, shuffle=False)
    assert [_indices(sampler, step) for step in range(3)] == [[0, 1], [2, 3], [0, 1]]


def test_a_recipe_episode_has_eight_steps():
    assert StepSampler(8523, 1024, seed=42, shuffle=True).steps_per_episode == 8


@pytest.mark.parametrize("batch_size", [0, 6])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size):
    with pytest.raises(ValueError, match="data.rollout_batch_size between 1 and 5"):
        StepSampler(5, batch_size, seed=1, shuffle=True)


def test_sample_seeds_are_stable_distinct_and_positive():
    assert sample_seed(42, 3, 17, 5) == 4451462441251662663
    seeds = {
        sample_seed(run, step, problem, sample)
        for run in (0, 1)
        for step in range(11)
        for problem in range(40)
        for sample in range(8)
    }
    assert len(seeds) == 2 * 11 * 40 * 8
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_sample_seeds_do_not_run_fields_together():
    assert sample_seed(1, 11, 1, 1) != sample_seed(1, 1, 11, 1) != sample_seed(11, 1, 1, 1)


def test_ranks_share_every_window_by_number_and_by_length():
    lengths = [5, 80, 7, 60, 100, 1, 90, 3]
    order = [7, 0, 4, 1, 2, 3, 5, 6]
    shares = even_shares(order, lengths, window=4, num_ranks=2)
    # Of 3, 5, 100 and 80 tokens the first rank takes 100 and 3; of 7, 60, 1 and 90 it takes 90 and 1.
    assert shares == [[4, 7, 6, 5], [1, 0, 3, 2]]
    assert even_shares(order, lengths, window=4, num_ranks=1) == [order]


def test_rows_of_a_step_are_known_on_every_rank_and_change_with_step_and_seed():
    lengths = [5, 80, 7, 60, 100, 1, 90, 3]
    shares = all_rows(lengths, 3, 1, window=4, num_ranks=2)
    assert [rows_of(lengths, 3, 1, window=4, rank=rank, num_ranks=2) for rank in (0, 1, None)] == [*shares, []]
    (order,) = all_rows(lengths, 3, 1, window=4, num_ranks=1)
    assert [{*shares[0][i : i + 2], *shares[1][i : i + 2]} for i in (0, 2)] == [{*order[:4]}, {*order[4:]}]
    assert all_rows(lengths, 4, 1, window=4, num_ranks=1) != [order] != all_rows(lengths, 3, 2, window=4, num_ranks=1)


def test_no_rank_has_a_longest_sequence_more_than_another():
    rng = random.Random(0)
    lengths = [rng.randint(1, 1000) for _ in range(256)]
    for num_ranks in (2, 4, 8):
        shares = even_shares(range(256), lengths, window=128, num_ranks=num_ranks)
        assert sorted(sum(shares, [])) == list(range(256))
        for window in range(2):
            size = 128 // num_ranks
            totals = [sum(lengths[i] ** 2 for i in share[window * size : (window + 1) * size]) for share in shares]
            assert max(totals) - min(totals) <= 1000**2
