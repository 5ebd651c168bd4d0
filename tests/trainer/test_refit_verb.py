"""The page's refit: which of them are verified, and what a step's metrics say of it."""

from types import SimpleNamespace

import pytest
import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.placement import Places
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.setup.world import World
from support.tiny import ScriptedEngine

WEIGHTS = [("a", torch.arange(6.0)), ("b", torch.ones(2**18))]


def roles_with(*overrides: str) -> Roles:
    asked = []
    actor = SimpleNamespace(hf_buckets=lambda max_bytes: asked.append(max_bytes) or iter([WEIGHTS[:1], WEIGHTS[1:]]))
    config = compose(["experiment=quickstart", *overrides])
    others = dict.fromkeys(("grader", "gate", "sampling", "pad_id", "eos_id"))
    others["estimator"] = SimpleNamespace(roles=(), learners={}, update_loops={})
    mesh = SimpleNamespace(is_member=True, role=None, world_size=1)
    others["world"] = World(Places(range(1), range(1), range(1)), mesh, mesh, mesh)
    roles = Roles(config=config, actor=actor, engine=ScriptedEngine(8), timer=PhaseTimer(), **others)
    roles.asked = asked
    return roles


@pytest.mark.parametrize(
    ("setting", "verified"),
    [
        ("every", [1, 1, 1, 1, 1, 1]),
        ("off", [0, 0, 0, 0, 0, 0]),
        ("3", [1, 0, 1, 0, 0, 1]),  # the first of the process, then steps 6 and 9
        ("1", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_configuration_says_which_refits_are_verified(setting, verified):
    roles = roles_with(f"rollout.verify_refit={setting}")
    assert [roles.refit(version=step)["refit/verified"] for step in range(4, 10)] == verified


def test_after_a_failed_refit_the_next_is_verified():
    roles = roles_with("rollout.verify_refit=100")
    assert [roles.refit(version=step)["refit/verified"] for step in (1, 2)] == [1, 0]
    buckets, roles.actor.hf_buckets = roles.actor.hf_buckets, lambda max_bytes: iter([WEIGHTS[:1], 5])
    with pytest.raises(RuntimeError, match="refit to version 3 failed"):
        roles.refit(version=3)
    roles.actor.hf_buckets = buckets
    assert roles.refit(version=3)["refit/verified"] == 1


class ForgetfulEngine(ScriptedEngine):
    """An engine whose weights are gone when it wakes."""

    def wake(self):
        self.weight_version = None


def test_an_engine_that_drops_its_weights_asleep_is_verified_no_more_often():
    roles = roles_with("rollout.verify_refit=100")
    roles.engine = ForgetfulEngine(8)
    assert [roles.refit(version=step)["refit/verified"] for step in (1, 2, 3)] == [1, 0, 0]


def test_a_rollout_goes_by_the_weights_that_were_sent_also_where_the_engine_has_dropped_them():
    keys = []
    for engine in (ForgetfulEngine(8), ScriptedEngine(8)):
        roles = roles_with()
        roles.engine, roles.sampling = engine, SamplingParams(1, 4, 1.0, 1.0, 0, (), ())
        roles.refit(version=4)
        engine.wake()
        keys.append(roles._key([], 5, []))
    assert keys[0] == keys[1] and keys[0].weight_version == 4


def test_weights_that_were_discarded_asleep_come_again_before_anything_is_sampled(monkeypatch):
    sampled_from = []
    note = lambda prompts, engine, *args, **kwargs: sampled_from.append(engine.weight_version)  # noqa: E731
    monkeypatch.setattr("nemo_simplerl.trainer.roles.evaluate", note)
    for engine, sent in ((ForgetfulEngine(8), 2), (ScriptedEngine(8), 1)):
        roles = roles_with()
        roles.engine, roles.grader = engine, SimpleNamespace(grade=None)
        roles.refit(version=4)
        roles.evaluate([])
        assert (sampled_from.pop(), len(roles.asked)) == (4, sent)


def test_a_refit_tells_what_it_moved_and_is_billed():
    roles = roles_with("rollout.refit_bucket_mb=7")
    num_bytes = 4 * (6 + 2**18)
    assert roles.refit(version=5) == {
        "refit/version": 5,
        "refit/buckets": 2,
        "refit/bytes": num_bytes,
        "refit/verified": 1,
    }
    assert roles.asked == [7 * 2**20]
    assert list(roles.timer.drain()) == ["time/refit"]
