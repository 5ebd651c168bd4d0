"""The way of samples between the ranks of two models."""

from nemo_simplerl.trainer.shares import route_of


def test_samples_come_from_one_rank_that_holds_them_and_stay_where_they_are_wanted():
    """Ranks 0 and 1 are one replica of two tensor ranks; for the other model each is a replica of its own."""
    pair, singles = [[0, 1, 2, 3], [0, 1, 2, 3]], [[2, 0], [1, 3]]
    for rank, wanted in enumerate(singles):
        there = route_of(rank, pair, singles)
        assert (there.sends, there.receives) == ({}, {rank: wanted})
        back = route_of(rank, singles, pair)
        assert back.sends == {1 - rank: sorted(wanted)}
        assert back.receives == {0: [0, 2], 1: [1, 3]}


def test_a_rank_that_holds_what_it_wants_keeps_it_wherever_it_stands_in_its_replica():
    """Of two stages and two replicas, ranks 0 and 2 hold the same, and 1 and 3."""
    for rank, wanted in enumerate([[0], [2], [1], [3]]):
        route = route_of(rank, [[0, 1], [2, 3], [0, 1], [2, 3]], [[0], [2], [1], [3]])
        assert (route.sends, route.receives) == ({}, {rank: wanted})


def test_the_ranks_of_a_replica_take_turns_in_sending():
    routes = [route_of(rank, [[0], [0], [1], [1]], [[1, 0]] * 4) for rank in range(4)]
    assert [route.sends for route in routes] == [{2: [0]}, {3: [0]}, {0: [1]}, {1: [1]}]
    assert [route.receives for route in routes] == [
        {2: [1], 0: [0]},
        {3: [1], 1: [0]},
        {2: [1], 0: [0]},
        {3: [1], 1: [0]},
    ]


def test_between_models_on_ranks_of_their_own_all_travels_and_ranks_of_neither_do_nothing():
    """An actor of two tensor ranks, a critic of two data ranks, and an engine on the last rank."""
    actor, critic = [[0, 1], [0, 1], [], [], []], [[], [], [1], [0], []]
    there = [route_of(rank, actor, critic) for rank in range(5)]
    assert [route.sends for route in there] == [{2: [1]}, {3: [0]}, {}, {}, {}]
    assert [route.receives for route in there] == [{}, {}, {0: [1]}, {1: [0]}, {}]
    back = [route_of(rank, critic, actor) for rank in range(5)]
    assert [route.sends for route in back] == [{}, {}, {0: [1], 1: [1]}, {0: [0], 1: [0]}, {}]
