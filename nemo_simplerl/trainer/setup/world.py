"""Joining the world of ranks, in the layout that a run trains in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_simplerl.config.schema import ActorConfig, Config
from nemo_simplerl.files import reason_of, room_in
from nemo_simplerl.parallel.mesh import Mesh, build_mesh, destroy_mesh, leave_together
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.guard.watchdog import watched
from nemo_simplerl.trainer.setup import determinism
from nemo_simplerl.trainer.setup.prepare import prepare


@contextmanager
def join_world(config: Config) -> Iterator[Mesh]:
    """Join the world, and have one rank write what must exist before models are built. Collective."""
    determinism.pin(config.trainer.deterministic)
    mesh = mesh_of(
        config.actor,
        config.trainer.distributed_timeout_s,
        other_tensor_size=config.layout_of("critic").tensor_model_parallel_size,
    )
    try:
        with watched(config.trainer, mesh.rank, mesh.world_size):
            _prepare_on_first_rank(config, mesh)
            yield mesh
            with waiting("leave_together"):
                leave_together()
    finally:
        destroy_mesh()


def mesh_of(layout: ActorConfig, timeout_s: float, *, other_tensor_size: int = 1) -> Mesh:
    """Join the world in the actor's layout; `timeout_s` limits every collective. Collective.

    other_tensor_size: that of the critic, where it has a layout of its own.
    """
    return build_mesh(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        context_parallel_size=layout.context_parallel_size,
        timeout_s=timeout_s,
        other_tensor_size=other_tensor_size,
    )


def _prepare_on_first_rank(config: Config, mesh: Mesh) -> None:
    """Have rank 0 write what must exist. Raises ValueError on every rank where it cannot. Collective."""
    problem: str | None = None
    if mesh.rank == 0:
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
