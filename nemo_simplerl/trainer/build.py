"""The roles of a run from its configuration: what `open_run` trains with."""

from collections.abc import Callable
from functools import partial

from nemo_simplerl.config.schema import AlgoConfig, Config, ConsistencyConfig
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.model.source import kind_of, open_source, weights_fingerprint
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.trainer.consistency import ConsistencyGate
from nemo_simplerl.trainer.estimators import GaeWithCritic
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.build import bad_updates_of, build_learner
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.saving.step_state import StepState
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from nemo_simplerl.trainer.setup.grader import Grader
from nemo_simplerl.trainer.setup.prepare import model_folder


def build_roles(
    config: Config,
    model_path: str,
    mesh: Mesh,
    tokenizer,
    grader: Grader,
    *,
    total_steps: int,
    step_state: StepState,
    on_phase: Callable[[str], None],
) -> Roles:
    """Actor, critic, reference and engine, started from the weights at `model_path`. Collective.

    on_phase: called at the beginning of every phase, and before every update as actor.update or critic.update.
    """
    algo, rollout, critic_path = config.algo, config.rollout, config.critic.path
    sources = [open_source(model_path)]
    if critic_path is not None:
        sources.append(open_source(critic_path, critic=kind_of(critic_path) == "checkpoint"))
    actor_learner, critic_learner = build_learners(config, sources[0], sources[-1], mesh, total_steps)
    timer = PhaseTimer(on_enter=on_phase)
    actor = Actor(
        actor_learner,
        read_hf_config(model_folder(config)),
        config.actor,
        algo,
        temperature=rollout.temperature,
        timer=timer,
        update_loop=UpdateLoop(partial(on_phase, "actor.update")),
    )
    critic_loop = UpdateLoop(partial(on_phase, "critic.update"))
    critic = Critic(critic_learner, config.critic, algo, timer=timer, update_loop=critic_loop)
    return Roles(
        config=config,
        mesh=mesh,
        actor=actor,
        estimator=GaeWithCritic(critic, algo, mesh, step_state),
        engine=build_engine(rollout, config.model.precision, model_folder(config), mesh, tokenizer),
        grader=grader,
        gate=build_gate(
            rollout.consistency,
            algo,
            mesh,
            temperature=rollout.temperature,
            global_batch_size=config.actor.global_batch_size,
        ),
        sampling=sampling_of(rollout, tokenizer),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        timer=timer,
        initial_weights=" ".join(weights_fingerprint(source) for source in sources),
        step_state=step_state,
    )


def build_learners(
    config: Config, actor_source: Source, critic_source: Source, mesh: Mesh, total_steps: int
) -> tuple[Learner, Learner]:
    """The learners of actor and critic, whose learning rates decay over the updates of `total_steps` steps. Collective.

    A critic may start from an actor's weights, with a fresh value head.
    """
    algo, trainer = config.algo, config.trainer
    samples = config.data.rollout_batch_size * config.rollout.n_samples_per_prompt
    actor_updates, critic_updates = (
        algo.ppo_epochs * samples // section.global_batch_size for section in (config.actor, config.critic)
    )
    build = partial(
        build_learner,
        model=config.model,
        layout=config.actor,
        mesh=mesh,
        deterministic=trainer.deterministic,
        offload_adam_states=config.actor.offload_adam_states,
    )
    first_actor_step = algo.critic_warmup_steps + 1
    actor = build(
        actor_source,
        optim=config.actor.optim,
        total_updates=max(total_steps - algo.critic_warmup_steps, 1) * actor_updates,
        bad_updates=bad_updates_of(trainer, "actor", first_step=first_actor_step, updates_per_step=actor_updates),
    )
    critic = build(
        critic_source,
        optim=config.critic.optim,
        total_updates=total_steps * critic_updates,
        critic_seed=trainer.seed,
        bad_updates=bad_updates_of(trainer, "critic", first_step=1, updates_per_step=critic_updates),
    )
    return actor, critic


def build_gate(
    consistency: ConsistencyConfig, algo: AlgoConfig, mesh: Mesh, *, temperature: float, global_batch_size: int
) -> ConsistencyGate:
    """The gate between log-probabilities of the engine, which samples at `temperature`, and of the trainer.

    global_batch_size: samples of one update of the actor.
    """
    return ConsistencyGate(
        consistency,
        mesh,
        old_logprobs=algo.old_logprobs,
        probe_size=global_batch_size // mesh.dp_size,
        expects_difference=algo.logprob_temperature == "one" and temperature != 1.0,
    )
