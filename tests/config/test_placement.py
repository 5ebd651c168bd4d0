import pytest

from nemo_simplerl.config.placement import PlacementConfig, Places, places_of


def _places(world_size: int, *, actor=None, critic=None, engine=None, has_critic: bool = True) -> Places:
    placement = PlacementConfig(actor=actor, critic=critic, engine=engine)
    return places_of(placement, world_size, has_critic=has_critic)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ({}, (range(6), range(6), range(6))),
        ({"critic": "4-5"}, (range(4), range(4, 6), range(4))),
        ({"engine": 5}, (range(5), range(5), range(5, 6))),
        ({"critic": "2-3", "engine": "4-5"}, (range(2), range(2, 4), range(4, 6))),
        ({"actor": "0-1", "critic": "0-1", "engine": "2-5"}, (range(2), range(2), range(2, 6))),
        ({"critic": "4-5", "has_critic": False}, (range(6), range(6), range(6))),
    ],
)
def test_a_role_that_is_not_placed_lives_on_the_ranks_that_are_left(placement, expected):
    places = _places(6, **placement)
    assert (places.actor, places.critic, places.engine) == expected
    assert places.is_shared == (len(set(expected)) == 1)


def test_a_rank_knows_its_roles():
    places = _places(4, engine="2-3")
    assert [places.roles_of(rank) for rank in range(4)] == [("actor", "critic")] * 2 + [("engine",)] * 2


@pytest.mark.parametrize(
    ("placement", "fragments"),
    [
        ({"critic": "x", "engine": "3-1"}, ["placement.critic=x names no ranks", "placement.engine=3-1 names no"]),
        ({"critic": "5-8"}, ["placement.critic=5-8 goes beyond the ranks of the run, 0 to 5. Start 9 ranks"]),
        ({"actor": "0-3", "critic": "2-5"}, ["actor on ranks 0-3 and critic on 2-5 share some ranks, not all"]),
        ({"actor": "0-1", "critic": "2-3", "engine": "4"}, ["no role of placement lives on the ranks [5]"]),
        ({"actor": "0-3"}, ["critic and engine both live on ranks 4-5, apart from the actor"]),
        ({"critic": "0-1"}, ["placement.actor=2-5 does not begin at rank 0"]),
        ({"critic": "2-3"}, ["the ranks that no role of placement names, [0, 1, 4, 5], do not follow each other"]),
        ({"actor": "0-2", "critic": "3-5"}, ["placement.engine=null: the other roles leave it none of the 6 ranks"]),
    ],
)
def test_what_contradicts_itself_is_refused_with_what_would_work(placement, fragments):
    with pytest.raises(ValueError) as refused:
        _places(6, **placement)
    for fragment in fragments:
        assert fragment in str(refused.value)
