from nemo_simplerl.trainer.meeting import Told, joined_reports, new_messages


def test_rank_0_learns_what_other_roles_know_alone():
    mine = {"actor/lr": 1.0, "critic/value_mean": 2.0}
    critic = Told(None, {"critic/loss": 3.0, "critic/value_mean": float("nan"), "actor/lr": 9.0}, {"values": 4.0}, [])
    engine = Told(None, {"critic/loss": 9.0}, {"rollout": 5.0, "refit": 6.0, "values": 9.0}, [])
    assert joined_reports(mine, {"critic": critic, "engine": engine}) == {
        **mine,
        "critic/loss": 3.0,
        "time/values": 4.0,
        "time/rollout": 5.0,
    }


def test_messages_of_other_ranks_are_logged_once_and_not_again_where_every_rank_had_them():
    critic = Told(None, {}, {}, [(30, "an update was left out"), (20, "resumed")])
    engine = Told(None, {}, {}, [(20, "resumed"), (30, "the journal could not be written")])
    assert new_messages([(20, "resumed")], [critic, engine]) == [
        (30, "an update was left out"),
        (30, "the journal could not be written"),
    ]
