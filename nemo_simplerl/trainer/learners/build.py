"""A learner from a model on disk."""

from pathlib import Path

from nemo_simplerl.config.schema import ActorConfig, ModelConfig, OptimConfig, TrainerConfig
from nemo_simplerl.model.network.provider import DTYPES, build_gpt_model, kernel_options, use_transformer_engine
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.trainer.guard import finite
from nemo_simplerl.trainer.guard.finite import BadUpdates
from nemo_simplerl.trainer.learners.learner import Learner


def build_learner(
    source: Source,
    model: ModelConfig,
    layout: ActorConfig,
    optim: OptimConfig,
    mesh: Mesh,
    *,
    total_updates: int,
    deterministic: bool,
    critic_seed: int | None = None,
    bad_updates: BadUpdates | None = None,
) -> Learner:
    """The model of `source` in this rank's shard, with its optimizer. Collective.

    model: precision and kernels. layout: parallel sizes, recomputation, and whether Adam's state waits in host memory
    between updates. With `critic_seed` the model has a value head, drawn from that seed where the source has none.
    """
    dtype = DTYPES[model.precision]
    transformer_engine = use_transformer_engine(model.transformer_engine, dtype)
    gpt = build_gpt_model(
        source.hf,
        layout,
        mesh,
        dtype=dtype,
        transformer_engine=transformer_engine,
        critic_seed=critic_seed,
        deterministic=deterministic,
        kernels=kernel_options(model, transformer_engine=transformer_engine),
    )
    load_weights(gpt, source, mesh)
    return Learner(
        gpt,
        optim,
        mesh,
        total_updates=total_updates,
        use_distributed_optimizer=layout.use_distributed_optimizer,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        offload_adam_states=layout.offload_adam_states,
        bad_updates=bad_updates,
    )


def bad_updates_of(trainer: TrainerConfig, role: str, *, first_step: int, updates_per_step: int) -> BadUpdates:
    """Where the updates of a role that are left out are written down, and how many the run accepts."""
    folder = Path(trainer.run_dir) / finite.FOLDER
    return BadUpdates(folder, role, first_step, updates_per_step, trainer.max_bad_updates)
