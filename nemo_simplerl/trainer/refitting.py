"""The actor's weights, handed to the engines: on the actor's own ranks, or on others."""

from nemo_simplerl.rollout.base import RolloutEngine
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.rollout.sending import receive, send
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.elsewhere import ModelElsewhere
from nemo_simplerl.trainer.setup.world import World


def refit_engines(
    world: World, actor: Actor | ModelElsewhere, engine: RolloutEngine, version: int, *, max_bytes: int, verify: bool
) -> dict[str, float]:
    """Have every engine hold the actor's weights as `version`. Returns metrics, on rank 0 at least. Collective.

    max_bytes: of a bucket. verify: whether to compare what landed with what was sent. Of an actor whose engines live
    elsewhere, one replica sends.
    """
    if not world.places.is_engine_apart:
        if not world.engine.is_member:
            return {}
        engine.wake()
        return verified_refit(engine, actor.hf_buckets(max_bytes), version, verify=verify, group=world.engine.role)
    if world.engine.is_member:
        assert world.refit is not None, "every rank with an engine receives"
        return receive(engine, version, verify=verify, group=world.refit, device=world.engine.device)
    if isinstance(actor, Actor) and world.actor.dp_rank == 0:
        return send(actor.export(max_bytes), version, verify=verify, group=world.refit, replica=world.actor.model)
    return {}
