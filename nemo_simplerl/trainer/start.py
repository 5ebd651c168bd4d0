"""From a checked configuration to a finished run: prepare, warm start, build, train, sum up."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch.distributed as dist

from nemo_simplerl.config.load import to_dict, to_yaml
from nemo_simplerl.config.schema import Config, TrainerConfig
from nemo_simplerl.data.sampler import StepSampler
from nemo_simplerl.files import read_jsonl
from nemo_simplerl.parallel.mesh import Mesh, destroy_mesh, leave_together
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.build import build_prompts, build_roles, mesh_of, tokenizer_of
from nemo_simplerl.trainer.guard.alarms import Alarms
from nemo_simplerl.trainer.guard.faults import VARIABLE, Faults
from nemo_simplerl.trainer.guard.finite import forget_bad_updates
from nemo_simplerl.trainer.guard.stop import Stop, Stopping, safe_points
from nemo_simplerl.trainer.guard.watchdog import failures_told, watched
from nemo_simplerl.trainer.logging.run_log import RunLog
from nemo_simplerl.trainer.logging.wandb_log import WandbLog
from nemo_simplerl.trainer.loop import train
from nemo_simplerl.trainer.run import CHECKPOINTS, Run
from nemo_simplerl.trainer.saving import checkpoint
from nemo_simplerl.trainer.saving.checkpoint import Found
from nemo_simplerl.trainer.saving.journal import JOURNAL, Journal
from nemo_simplerl.trainer.saving.saver import Saver
from nemo_simplerl.trainer.saving.step_state import StepInHand
from nemo_simplerl.trainer.setup import determinism
from nemo_simplerl.trainer.setup.grader import build_grader
from nemo_simplerl.trainer.setup.prepare import model_folder, prepare
from nemo_simplerl.trainer.warm_start.run import StoppedEarly, warm_start


def start_training(config: Config, started: float | None = None) -> bool:
    """`simplerl train` on this rank of the world. False where it was stopped before its end, and can go on.

    started: time.monotonic() when the process began; now, where it is not given. Raises ValueError for input that
    cannot be used.
    """
    started = time.monotonic() if started is None else started
    with join_world(config) as mesh:
        try:
            with open_run(config, mesh, started) as run, failures_told(), run.stop:
                try:
                    train(run)
                except Stopping as asked:
                    run.leave(str(asked))
                    return False
        except StoppedEarly:
            return False
    return True


def start_warm_start(config: Config) -> None:
    """`simplerl sft` on this rank of the world. Raises ValueError for input that cannot be used."""
    trainer = config.trainer
    with join_world(config) as mesh, ExitStack() as opened:
        say, wandb = print if mesh.rank == 0 else silent, None
        if mesh.rank == 0 and trainer.wandb.enabled:
            wandb = WandbLog(trainer.wandb, Path(trainer.run_dir), to_dict(config), say)
            opened.enter_context(closing(wandb))
        warm_start(config, mesh, say, wandb)


@contextmanager
def open_run(config: Config, mesh: Mesh, started: float) -> Iterator[Run]:
    """A run ready to train, warm-started where the configuration says so; closed at the end. Collective."""
    data, trainer, run_dir = config.data, config.trainer, Path(config.trainer.run_dir)
    found = _checkpoint_to_resume(trainer, mesh)
    tokenizer = tokenizer_of(config)
    prompts, notes = build_prompts(config, tokenizer, data.train_path)
    eval_prompts, eval_notes = build_prompts(config, tokenizer, data.eval_path, data.eval_limit)
    sampler = StepSampler(len(prompts), data.rollout_batch_size, seed=trainer.seed, shuffle=data.shuffle)
    total_steps = trainer.max_steps or trainer.num_episodes * sampler.steps_per_episode
    faults = Faults.parse(os.environ.get(VARIABLE, ""), mesh.rank)
    stop = Stop(run_dir, is_first_rank=mesh.rank == 0, max_time=trainer.max_time, started=started)
    log = _log(trainer, mesh, found, total_steps, faults)
    journal = Journal(run_dir / JOURNAL, is_writer=mesh.rank == 0, say=log.say, reach=faults.reach)
    if mesh.rank == 0:
        stop.forget()
        forget_bad_updates(run_dir, ("actor", "critic"), 0 if found is None else found.manifest.place.steps_begun)
        if not trainer.resume:
            journal.forget(None)
    with closing(log):
        log.config(to_yaml(config))
        log.open_wandb(trainer.wandb, to_dict(config))
        for note in (*determinism.notes(trainer.deterministic), *(found.notes if found else ()), *notes, *eval_notes):
            log.say(note)
        with closing(build_grader(config.reward, log.say)) as grader:
            model_path = config.model.path if config.sft.output is None else _warm_start(config, mesh, log, stop)
            roles = build_roles(
                config,
                model_path,
                mesh,
                tokenizer,
                grader,
                log.say,
                total_steps=total_steps,
                in_hand=StepInHand(journal, stop.safe_point, lambda: stop.is_urgent),
                reached=safe_points(stop.safe_point, faults.reach),
            )
            saver = _saver(config, mesh, log, journal, faults)
            lines = read_jsonl(run_dir / "metrics.jsonl") if mesh.rank == 0 else []  # of the steps it goes on from
            alarms = Alarms(trainer.alarms, config.reward, lines)
            with closing(roles.engine), closing(saver):
                yield Run(
                    config,
                    roles,
                    log,
                    prompts,
                    eval_prompts,
                    sampler,
                    total_steps,
                    saver,
                    found,
                    started,
                    stop,
                    faults,
                    alarms,
                )


def _warm_start(config: Config, mesh: Mesh, log: RunLog, stop: Stop) -> str:
    """The folder it ends in. StoppedEarly, and what is to be known of it written down, where it was asked to stop."""
    try:
        with stop:
            return warm_start(config, mesh, log.say, log.wandb, stop.safe_point)
    except StoppedEarly as asked:
        if mesh.rank == 0:
            stop.forget()
        log.stopped({"step": 0, "updates_in_step": asked.update, "reason": str(asked)})
        log.say(
            f"stopped after update {asked.update} of the warm start: {asked}. Start the same command again to go on."
        )
        raise


def _checkpoint_to_resume(trainer: TrainerConfig, mesh: Mesh) -> Found | None:
    folder = Path(trainer.run_dir) / CHECKPOINTS
    if not trainer.resume and (places := checkpoint.places_on_disk(folder)):
        raise ValueError(
            f"{folder / places[-1].name} exists, but trainer.resume=false; set it to true or choose "
            "another trainer.run_dir."
        )
    return checkpoint.find_intact(folder, mesh)


def _log(trainer: TrainerConfig, mesh: Mesh, found: Found | None, total_steps: int, faults: Faults) -> RunLog:
    log = RunLog(
        trainer.run_dir,
        tensorboard=trainer.tensorboard,
        resume_step=None if found is None else found.manifest.step,
        is_writer=mesh.rank == 0,
        reach=faults.reach,
    )
    log.total_steps = total_steps
    return log


def _saver(config: Config, mesh: Mesh, log: RunLog, journal: Journal, faults: Faults) -> Saver:
    trainer = config.trainer
    return Saver(
        Path(trainer.run_dir) / CHECKPOINTS,
        mesh,
        model_folder=model_folder(config),
        keep=checkpoint.Retention(trainer.keep_last, trainer.keep_every, trainer.keep_best),
        in_background=trainer.async_save,
        say=log.say,
        on_complete=lambda place: journal.forget(place.steps),
        reach=faults.reach,
    )


@contextmanager
def join_world(config: Config) -> Iterator[Mesh]:
    """Join the world and let one rank write what must exist. Collective."""
    determinism.pin(config.trainer.deterministic)
    mesh = mesh_of(config)
    try:
        with watched(config.trainer, mesh.rank, mesh.world_size):
            if mesh.rank == 0:
                prepare(config)
            with waiting("barrier.prepared"):
                dist.barrier()
            yield mesh
            with waiting("leave_together"):
                leave_together()
    finally:
        destroy_mesh()


def silent(text: str) -> None:
    """Ranks other than the first keep quiet."""
