"""From a checked configuration to a finished run: prepare, warm start, build, train, sum up."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch.distributed as dist

from nemo_simplerl.config.load import to_yaml
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.sampler import StepSampler
from nemo_simplerl.parallel.mesh import Mesh, destroy_mesh, leave_together
from nemo_simplerl.trainer import checkpoint
from nemo_simplerl.trainer.build import build_prompts, build_roles, mesh_of, tokenizer_of
from nemo_simplerl.trainer.grader import build_grader
from nemo_simplerl.trainer.log import RunLog
from nemo_simplerl.trainer.loop import train
from nemo_simplerl.trainer.prepare import model_folder, prepare
from nemo_simplerl.trainer.run import CHECKPOINTS, Run
from nemo_simplerl.trainer.saver import Saver
from nemo_simplerl.trainer.warm_start import warm_start


def start_training(config: Config) -> None:
    """`simplerl train` on this rank of the world. Raises ValueError for input that cannot be used."""
    started = time.monotonic()
    with join_world(config) as mesh, open_run(config, mesh, started) as run:
        train(run)


def start_warm_start(config: Config) -> None:
    """`simplerl sft` on this rank of the world. Raises ValueError for input that cannot be used."""
    with join_world(config) as mesh:
        warm_start(config, mesh, print if mesh.rank == 0 else _silent)


@contextmanager
def open_run(config: Config, mesh: Mesh, started: float) -> Iterator[Run]:
    """A run ready to train, warm-started where the configuration says so; closed at the end. Collective."""
    data, trainer = config.data, config.trainer
    folder = Path(trainer.run_dir) / CHECKPOINTS
    if not trainer.resume and (steps := checkpoint.steps_on_disk(folder)):
        raise ValueError(
            f"{checkpoint.step_folder(folder, steps[-1])} exists, but trainer.resume=false; set it to true or choose "
            "another trainer.run_dir."
        )
    found = checkpoint.find_intact(folder, mesh)
    tokenizer = tokenizer_of(config)
    prompts, notes = build_prompts(config, tokenizer, data.train_path)
    eval_prompts, eval_notes = build_prompts(config, tokenizer, data.eval_path, data.eval_limit)
    sampler = StepSampler(len(prompts), data.rollout_batch_size, seed=trainer.seed, shuffle=data.shuffle)
    total_steps = trainer.max_steps or trainer.num_episodes * sampler.steps_per_episode
    log = RunLog(
        trainer.run_dir,
        tensorboard=trainer.tensorboard,
        resume_step=None if found is None else found.manifest.step,
        is_writer=mesh.rank == 0,
    )
    log.total_steps = total_steps
    with closing(log):
        log.config(to_yaml(config))
        for note in (*(found.notes if found else ()), *notes, *eval_notes):
            log.say(note)
        with closing(build_grader(config.reward, log.say)) as grader:
            model_path = config.model.path if config.sft.output is None else warm_start(config, mesh, log.say)
            roles = build_roles(config, model_path, mesh, tokenizer, grader, log.say, total_steps=total_steps)
            saver = Saver(
                folder,
                mesh,
                model_folder=model_folder(config),
                keep=checkpoint.Retention(trainer.keep_last, trainer.keep_every, trainer.keep_best),
                in_background=trainer.async_save,
                say=log.say,
            )
            with closing(roles.engine), closing(saver):
                yield Run(config, roles, log, prompts, eval_prompts, sampler, total_steps, saver, found, started)


@contextmanager
def join_world(config: Config) -> Iterator[Mesh]:
    """Join the world and let one rank write what must exist. Collective."""
    mesh = mesh_of(config)
    try:
        if mesh.rank == 0:
            prepare(config)
        dist.barrier()
        yield mesh
        leave_together()
    finally:
        destroy_mesh()


def _silent(text: str) -> None:
    """Ranks other than the first keep quiet."""
