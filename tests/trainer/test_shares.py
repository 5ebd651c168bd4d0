"""The way of samples between the data ranks of two models."""

from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.trainer.shares import route_of


def test_samples_come_from_one_rank_that_holds_them_and_stay_where_they_are_wanted():
    """Ranks 0 and 1 are one replica of two tensor ranks; for the other model each is a replica of its own."""
    pair, singles = Grid(range(2), tp_size=2, pp_size=1), Grid(range(2), tp_size=1, pp_size=1)
    for rank, wanted in ((0, [2, 0]), (1, [1, 3])):
        there = route_of(rank, pair, [[0, 1, 2, 3]], singles, [[2, 0], [1, 3]])
        assert (there.sends, there.receives) == ({}, {rank: wanted})
        back = route_of(rank, singles, [[2, 0], [1, 3]], pair, [[0, 1, 2, 3]])
        assert back.sends == {1 - rank: sorted(wanted)}
        assert back.receives == {0: [0, 2], 1: [1, 3]}


def test_a_rank_that_holds_what_it_wants_keeps_it_wherever_it_stands_in_its_replica():
    """Of two stages and two replicas, ranks 0 and 2 hold the same, and 1 and 3."""
    stages, singles = Grid(range(4), tp_size=1, pp_size=2), Grid(range(4), tp_size=1, pp_size=1)
    for rank, wanted in enumerate([[0], [2], [1], [3]]):
        route = route_of(rank, stages, [[0, 1], [2, 3]], singles, [[0], [2], [1], [3]])
        assert (route.sends, route.receives) == ({}, {rank: wanted})


def test_the_ranks_of_a_replica_take_turns_in_sending():
    pairs, quads = Grid(range(4), tp_size=2, pp_size=1), Grid(range(4), tp_size=2, pp_size=2)
    routes = [route_of(rank, pairs, [[0], [1]], quads, [[1, 0]]) for rank in range(4)]
    assert [route.sends for route in routes] == [{2: [0]}, {3: [0]}, {0: [1]}, {1: [1]}]
    assert [route.receives for route in routes] == [
        {2: [1], 0: [0]},
        {3: [1], 1: [0]},
        {2: [1], 0: [0]},
        {3: [1], 1: [0]},
    ]
