"""Where the ranks of a layout stand."""

import pytest

from nemo_simplerl.parallel.grid import Grid


def test_tensor_ranks_are_neighbours_and_stages_are_furthest_apart():
    grid = Grid(range(1, 9), tp_size=2, pp_size=2)
    assert grid.dp_size == 2
    assert grid.tensor == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert grid.data == [[1, 3], [2, 4], [5, 7], [6, 8]]
    assert grid.pipeline == [[1, 5], [2, 6], [3, 7], [4, 8]]
    assert grid.model == [[1, 2, 5, 6], [3, 4, 7, 8]]
    assert grid.stages == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [grid.dp_rank(rank) for rank in grid.ranks] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_ranks_that_make_no_whole_replicas_are_refused():
    with pytest.raises(ValueError, match=r"6 ranks cannot hold replicas of 4 ranks .* start a multiple of 4"):
        Grid(range(6), tp_size=2, pp_size=2)
