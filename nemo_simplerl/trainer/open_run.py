"""A run from a checked configuration: found again or begun, warm-started, built, and closed at the end."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from nemo_simplerl.config.load import to_dict, to_yaml
from nemo_simplerl.config.rules.layout import placement_notes
from nemo_simplerl.config.run_dir import read_begun
from nemo_simplerl.config.schema import Config, TrainerConfig
from nemo_simplerl.data.examples import check_room, examples_of, stops_of
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import StepSampler
from nemo_simplerl.files import read_jsonl
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.report.read import with_current_keys
from nemo_simplerl.trainer.build import build_roles, materials_on_disk, objective_notes
from nemo_simplerl.trainer.consistency import sampling_notes
from nemo_simplerl.trainer.estimators import kl_warnings
from nemo_simplerl.trainer.guard.alarms import Alarms
from nemo_simplerl.trainer.guard.faults import VARIABLE, Faults, installed
from nemo_simplerl.trainer.guard.finite import delete_bad_updates
from nemo_simplerl.trainer.guard.idle import idle
from nemo_simplerl.trainer.guard.stop import Stop
from nemo_simplerl.trainer.logging.run_log import MessageLog, RunLog
from nemo_simplerl.trainer.logging.screen import Outbox, messages_to, print_line
from nemo_simplerl.trainer.run import CHECKPOINTS, Run
from nemo_simplerl.trainer.saving import checkpoint
from nemo_simplerl.trainer.saving.checkpoint import Found
from nemo_simplerl.trainer.saving.history import SAVED, check_history, remember_saved
from nemo_simplerl.trainer.saving.journal import JOURNAL, Journal
from nemo_simplerl.trainer.saving.position import TrainingPosition
from nemo_simplerl.trainer.saving.saver import Saver
from nemo_simplerl.trainer.saving.step_state import StepState
from nemo_simplerl.trainer.setup import determinism
from nemo_simplerl.trainer.setup.grader import build_grader
from nemo_simplerl.trainer.setup.inputs import build_prompts, check_inputs, inputs_held, record_inputs, tokenizer_of
from nemo_simplerl.trainer.setup.notes import ahead_notes, unread_notes
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.setup.world import World
from nemo_simplerl.trainer.warm_start.run import stoppable_warm_start

log = logging.getLogger(__name__)


@contextmanager
def open_run(config: Config, world: World, started: float) -> Iterator[Run]:
    """A run ready to train, warm-started where the configuration says so; closed at the end. Collective."""
    mesh = world.actor
    trainer, run_dir, is_first_rank = config.trainer, Path(config.trainer.run_dir), mesh.rank == 0
    found = _checkpoint_to_resume(trainer, mesh)
    replaced = check_inputs(config, run_dir / CHECKPOINTS) if found else []
    left_aside = [] if found is None else _roles_left_aside(config, found)
    earlier = _earlier_life(trainer, found, mesh)
    held = {} if found else inputs_held(config)  # before they are read, and a warm start takes its hours
    tokenizer = tokenizer_of(model_folder(config))
    prompts, eval_prompts, notes = _prompts(config, tokenizer)
    sampler = _sampler(config, len(prompts))
    total_steps = trainer.max_steps or trainer.num_episodes * sampler.steps_per_episode
    notes += _length_notes(config, sampler, total_steps)
    _check_length(config, total_steps, done=0 if found is None else found.manifest.position.steps_begun)
    faults = Faults.parse(os.environ.get(VARIABLE, ""), mesh.rank)
    stop = Stop(run_dir, is_first_rank=is_first_rank, max_time=trainer.max_time, started=started)
    console, outbox = Console(), None if world.places.is_shared else Outbox()
    run_log = _run_log(trainer, mesh, found, total_steps, console)
    journal = Journal(run_dir / JOURNAL, world.engine.role)
    if is_first_rank:
        _clear_earlier(trainer, stop, found, journal)
    with (
        messages_to(partial(print_line, console), is_first_rank=is_first_rank, keep=MessageLog(run_dir), outbox=outbox),
        closing(run_log),
        ExitStack() as opened,
    ):
        run_log.config(to_yaml(config))
        run_log.open_wandb(trainer.wandb, to_dict(config))
        of_found = (*(found.notes if found else ()), *replaced)
        of_places = placement_notes(config, world.places)
        for note in (*determinism.notes(trainer.deterministic), *of_found, *unread_notes(config), *of_places, *notes):
            log.info(note)
        warnings = (
            *sampling_notes(config.rollout),
            *ahead_notes(config, world.places),
            *kl_warnings(config.algo),
            *objective_notes(config),
        )
        for warning in (*earlier, *left_aside, *warnings):
            log.warning(warning)
        grader = opened.enter_context(closing(build_grader(config.reward)))
        if not world.engine.is_member:
            grader.close()  # nothing is graded here; what it cannot do, every rank has said
        model_path = config.model.path
        if config.sft.output is not None:
            model_path = stoppable_warm_start(config, mesh, run_log.wandb, stop)
        if found is None:
            record_inputs(config, held)
        opened.enter_context(installed(faults))  # they count the points of PPO's steps
        roles = build_roles(
            config,
            materials_on_disk(config, model_path, tokenizer),
            world,
            grader,
            total_steps=total_steps,
            step_state=StepState(journal if world.engine.is_member else None, lambda: stop.is_urgent),
            on_phase=stop.on_phase if world.places.is_shared else stop.on_phase_of_role,
            safe_point=stop.safe_point,
            outbox=outbox,
        )
        opened.enter_context(closing(roles.engine))
        yield Run(
            config=config,
            roles=roles,
            run_log=run_log,
            prompts=prompts,
            eval_prompts=eval_prompts,
            sampler=sampler,
            total_steps=total_steps,
            saver=opened.enter_context(closing(_saver(config, mesh, journal))),
            found=found,
            lap_started=started,
            stop=stop,
            alarms=_alarms(config, is_first_rank),
        )


def _prompts(config: Config, tokenizer) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """Prompts of training and of evaluation, and what happened to both files in words."""
    data, max_tokens = config.data, config.rollout.max_prompt_tokens
    check_room(examples_of(data), tokenizer, config.rollout.max_response_tokens)
    build = partial(build_prompts, data, tokenizer, max_tokens=max_tokens, is_graded=config.reward.function is None)
    prompts, notes = build(data.train_path)
    eval_prompts, eval_notes = build(data.eval_path, limit=data.eval_limit)
    ends = [f"a response ends at {end!r} too, as data.examples do" for end in stops_of(data)]
    return prompts, eval_prompts, notes + eval_notes + ends


def _sampler(config: Config, num_prompts: int) -> StepSampler:
    rollout, data = config.rollout, config.data
    return StepSampler(
        num_prompts,
        data.rollout_batch_size,
        seed=config.trainer.seed,
        shuffle=data.shuffle,
        max_rounds=rollout.max_rounds if rollout.keep_groups == "mixed" else 1,
    )


def _length_notes(config: Config, sampler: StepSampler, total_steps: int) -> list[str]:
    """What to know of how the steps of the run go through its prompts, in words."""
    notes = [leftover] if (leftover := sampler.leftover(total_steps)) else []
    if config.rollout.keep_groups == "mixed" and config.trainer.max_steps is None:
        notes.append(
            f"rollout.keep_groups=mixed: the {total_steps} steps of trainer.num_episodes={config.trainer.num_episodes} "
            f"are counted as if each took {sampler.batch_size} prompts; it takes more, in more passes over the data"
        )
    return notes


def _checkpoint_to_resume(trainer: TrainerConfig, mesh: Mesh) -> Found | None:
    folder = Path(trainer.run_dir) / CHECKPOINTS
    if not trainer.resume and (positions := checkpoint.positions_on_disk(folder)):
        raise ValueError(
            f"{folder / positions[-1].name} exists, but trainer.resume=false; set it to true or choose "
            "another trainer.run_dir."
        )
    return checkpoint.find_intact(folder, mesh)


def _earlier_life(trainer: TrainerConfig, found: Found | None, mesh: Mesh) -> list[str]:
    """What the run directory tells of the run's earlier processes that the user should know. Collective.

    Raises ValueError on every rank where the run would start over although it had saved.
    """
    run_dir, position = Path(trainer.run_dir), None if found is None else found.manifest.position
    notes: list[str] = []
    problem: str | None = None
    if mesh.rank == 0:
        try:
            if (begun := read_begun(run_dir)) is not None:
                notes += begun.notes
            if trainer.resume:
                notes += check_history(run_dir, position)
        except ValueError as error:
            problem = str(error)
    notes, problem = of_first_rank((notes, problem), "checkpoint")
    if problem is not None:
        raise ValueError(problem)
    return notes


def _roles_left_aside(config: Config, found: Found) -> list[str]:
    """A message on a critic that the checkpoint has and the run leaves aside, as trainer.resume_allow asks.

    Raises ValueError where checkpoint and configuration have other roles and that was not asked for, or cannot be done.
    """
    saved, algo = found.manifest, config.algo
    had_critic, path = "critic" in saved.updates, found.path
    if had_critic == algo.has_critic:
        return []
    if not had_critic:
        raise ValueError(
            f"{path} was saved by a run without a critic, and algo.advantage={algo.advantage} needs one. Go on with "
            f"the algo.advantage of {config.trainer.run_dir}/config.yaml, or begin a run with a fresh critic from its "
            f"policy: model.path={path} with another trainer.run_dir."
        )
    asked = {"algo", "algo.advantage"} & set(config.trainer.resume_allow)
    if not asked:
        raise ValueError(
            f"{path} holds a critic, and algo.advantage={algo.advantage} trains none. To go on without it, give "
            "trainer.resume_allow=[algo.advantage]: the critic is then left aside. algo.advantage=gae goes on with it."
        )
    if saved.updates_in_step:
        raise ValueError(
            f"{path} was saved in the middle of a step that trains a critic, which algo.advantage={algo.advantage} "
            "cannot finish. Finish it with algo.advantage=gae, or name an older checkpoint in checkpoints/latest."
        )
    return [f"the critic in {path} is left aside: algo.advantage={algo.advantage} trains none"]


def _check_length(config: Config, total_steps: int, *, done: int) -> None:
    """Raises ValueError where the run, whose length the data may decide, ends before the steps that are done, or before
    the critic's warm-up does."""
    if done > total_steps:
        raise ValueError(
            f"the run in {config.trainer.run_dir} has done {done} steps, more than the {total_steps} of this command. "
            "Give more trainer.max_steps or trainer.num_episodes, or another trainer.run_dir."
        )
    warmup = config.algo.critic_warmup_steps
    if warmup >= total_steps:
        raise ValueError(
            f"algo.critic_warmup_steps={warmup} leaves the actor none of the run's {total_steps} steps (trainer."
            f"num_episodes={config.trainer.num_episodes} passes over the data). Set algo.critic_warmup_steps="
            f"{total_steps - 1} or less, or more trainer.num_episodes."
        )


def _clear_earlier(trainer: TrainerConfig, stop: Stop, found: Found | None, journal: Journal) -> None:
    """Remove what earlier processes of this run left that no longer holds: requests to stop, and later steps."""
    stop.delete_files()
    steps_begun = 0 if found is None else found.manifest.position.steps_begun
    delete_bad_updates(trainer.run_dir, ("actor", "critic"), steps_begun)
    if not trainer.resume:
        journal.delete(None)
    if found is None:
        (Path(trainer.run_dir) / SAVED).unlink(missing_ok=True)  # of the history that is begun anew


def _run_log(trainer: TrainerConfig, mesh: Mesh, found: Found | None, total_steps: int, console: Console) -> RunLog:
    run_log = RunLog(
        trainer.run_dir,
        tensorboard=trainer.tensorboard,
        resume_step=None if found is None else found.manifest.step,
        is_writer=mesh.rank == 0,
        console=console,
    )
    run_log.total_steps = total_steps
    return run_log


def _saver(config: Config, mesh: Mesh, journal: Journal) -> Saver:
    trainer, run_dir = config.trainer, Path(config.trainer.run_dir)

    def on_complete(position: TrainingPosition) -> None:
        remember_saved(run_dir, position)
        journal.delete(position.steps)

    return Saver(
        run_dir / CHECKPOINTS,
        mesh,
        model_folder=partial(model_folder, config),
        keep=checkpoint.Retention(trainer.keep_last, trainer.keep_every, trainer.keep_best),
        in_background=trainer.async_save,
        on_complete=on_complete,
    )


def _alarms(config: Config, is_first_rank: bool) -> Alarms:
    """Alarms that know the metrics of the steps before those that this process makes."""
    path = Path(config.trainer.run_dir) / "metrics.jsonl"
    lines = [with_current_keys(line) for line in read_jsonl(path)] if is_first_rank else []
    return Alarms(config.trainer.alarms, config.reward, lines, more=partial(idle, config=config))
