"""Joining the world of ranks, in the layout that a run trains in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from nemo_simplerl.config.placement import LEARNERS, ROLES, Places, places_of
from nemo_simplerl.config.schema import ActorConfig, Config
from nemo_simplerl.files import reason_of, room_in
from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.parallel.mesh import Mesh, build_mesh, destroy_mesh, join, leave_together, mesh_over
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.guard.watchdog import watched
from nemo_simplerl.trainer.logging.trace import traced
from nemo_simplerl.trainer.setup import determinism
from nemo_simplerl.trainer.setup.prepare import prepare

_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class World:
    """The ranks of a run, and the mesh of each role over those that it lives on. Elsewhere a role's mesh is no member.

    Roles with the same ranks and the same layout share one mesh. engine: a replica a rank; only its ranks are read.
    refit: the actor's first rank, which sends, and the engine's ranks, which receive; None on other ranks, and where
    the engine lives on the actor's ranks.
    """

    places: Places
    actor: Mesh
    critic: Mesh
    engine: Mesh
    refit: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        return self.actor.rank

    @property
    def size(self) -> int:
        return self.actor.world_size

    @property
    def meshes(self) -> dict[str, Mesh]:
        return {role: getattr(self, role) for role in ROLES}


@contextmanager
def join_world(config: Config) -> Iterator[World]:
    """Join the world, and have one rank write what must exist before models are built. Collective."""
    determinism.pin(config.trainer.deterministic)
    world = world_of(config)
    try:
        roles, run_dir = _roles_here(config, world), Path(config.trainer.run_dir)
        with traced(run_dir, world.rank), watched(config.trainer, world.rank, world.size, roles):
            _prepare_on_first_rank(config, world.rank)
            yield world
            with waiting("leave_together"):
                leave_together()
    finally:
        destroy_mesh()


def world_of(config: Config) -> World:
    """Join the world, with each role in its layout on its ranks. Collective.

    trainer.distributed_timeout_s limits every collective within a role, and those between roles that share their ranks.
    """
    timeout_s, layouts = config.trainer.distributed_timeout_s, {role: config.layout_of(role) for role in LEARNERS}
    longest_wait_s = timeout_between_roles_s(config)
    size = join(
        timeout_s,
        overlaps=any(layout.tensor_model_parallel_size > 1 for layout in layouts.values()),
        longest_wait_s=longest_wait_s if longest_wait_s > timeout_s else None,
    )
    places = places_of(config.placement, size, has_critic=config.algo.has_critic)
    grids = {
        role: Grid(places.of(role), layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size)
        for role, layout in layouts.items()
    }
    meshes: dict[Grid, Mesh] = {}
    for grid in (*grids.values(), Grid(places.engine, 1, 1)):
        if grid not in meshes:
            meshes[grid] = mesh_over(grid, timeout_s=timeout_s)
    actor, critic, engine = meshes[grids["actor"]], meshes[grids["critic"]], meshes[Grid(places.engine, 1, 1)]
    return World(places, actor, critic, engine, _refit_group(places, longest_wait_s))


def _refit_group(places: Places, timeout_s: float) -> dist.ProcessGroup | None:
    """See World.refit. Collective over the world: ranks outside the group make it too."""
    if places.engine == places.actor:
        return None
    ranks = [places.actor.start, *places.engine]
    group = dist.new_group(ranks, timeout=timedelta(seconds=timeout_s))
    return group if dist.get_rank() in ranks else None


def timeout_between_roles_s(config: Config) -> float:
    """Seconds after which a collective of ranks of several roles fails.

    Roles on ranks of their own wait for each other as long as all that the other does takes. The watchdog sees whether
    it is at work; without one a lost rank must end the wait.
    """
    timeout_s, placement = config.trainer.distributed_timeout_s, config.placement
    are_apart = any(getattr(placement, role) is not None for role in ROLES)
    return max(timeout_s, _DAY_S) if are_apart and config.trainer.watchdog.enabled else timeout_s


def _roles_here(config: Config, world: World) -> tuple[str, ...]:
    """The roles that live on this rank, where not all live on all ranks."""
    if world.places.is_shared:
        return ()
    return tuple(role for role in world.places.roles_of(world.rank) if role != "critic" or config.algo.has_critic)


def mesh_of(layout: ActorConfig, timeout_s: float) -> Mesh:
    """Join the world, with one mesh of all its ranks; `timeout_s` limits every collective. Collective."""
    return build_mesh(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        context_parallel_size=layout.context_parallel_size,
        timeout_s=timeout_s,
    )


def _prepare_on_first_rank(config: Config, rank: int) -> None:
    """Have rank 0 write what must exist. Raises ValueError on every rank where it cannot. Collective."""
    problem: str | None = None
    if rank == 0:
        try:
            prepare(config)
        except OSError as error:
            problem = f"{reason_of(error)}. {room_in(Path(config.trainer.run_dir))}."
        except ValueError as error:
            problem = str(error)
    with waiting("barrier.prepared"):
        problem = of_first_rank(problem, "objects")
    if problem is not None:
        raise ValueError(problem)
