"""The roles of a run from its configuration: what `open_run` trains with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nemo_simplerl.config.schema import ActorConfig, AlgoConfig, Config, ConsistencyConfig, CriticConfig
from nemo_simplerl.data.examples import stops_of
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.model.source import kind_of, open_source, weights_fingerprint
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.trainer.consistency import ConsistencyGate
from nemo_simplerl.trainer.estimators import build_estimator
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.build import bad_updates_of, build_learner
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.learners.elsewhere import ModelElsewhere
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.logging.screen import Outbox
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.saving.step_state import StepState
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from nemo_simplerl.trainer.setup.grader import Grader
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.setup.world import World


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What roles are built from beside the configuration: `materials_on_disk` reads it, a dry run makes it up."""

    hf: dict  # the policy's config.json
    sources: tuple[Source, ...]  # the weights that the actor starts from, and the critic's where it has others
    initial_weights: str  # a digest of them
    sampling: SamplingParams
    pad_id: int
    eos_id: int
    build_engine: Callable[[Mesh], RolloutEngine]  # called when the models are built. Collective


def materials_on_disk(config: Config, model_path: str, tokenizer) -> Materials:
    """The materials of a run whose actor starts from the weights at `model_path`."""
    critic_path, folder = config.critic.path, model_folder(config)
    sources = [open_source(model_path)]
    if critic_path is not None:
        sources.append(open_source(critic_path, critic=kind_of(critic_path) == "checkpoint"))
    return Materials(
        hf=read_hf_config(folder),
        sources=tuple(sources),
        initial_weights=" ".join(weights_fingerprint(source) for source in sources),
        sampling=sampling_of(config.rollout, tokenizer, folder, stops_of(config.data)),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        build_engine=lambda mesh: build_engine(config.rollout, config.model.precision, folder, mesh, tokenizer),
    )


def build_roles(
    config: Config,
    materials: Materials,
    world: World,
    grader: Grader,
    *,
    total_steps: int,
    step_state: StepState,
    on_phase: Callable[..., None],
    safe_point: Callable[[], None] = lambda: None,
    outbox: Outbox | None = None,
) -> Roles:
    """Actor, estimator, reference and engine, started from the weights of `materials`, each on its ranks. Collective.

    on_phase: called at the beginning of every phase, and before every update as actor.update or critic.update; in the
    work of one model with `group=`, the ranks of that model's mesh. safe_point: raises on every rank of the world
    where one was asked to stop. outbox: messages for rank 0.
    """
    algo, sources, temperature = config.algo, materials.sources, config.rollout.temperature
    timer = PhaseTimer(on_enter=on_phase)
    mesh, longest = world.actor, config.rollout.max_response_tokens

    def build_actor() -> Actor | ModelElsewhere:
        if not mesh.is_member:
            return ModelElsewhere()
        of_actor = partial(on_phase, group=mesh.role)
        return Actor(
            _actor_learner(config, sources[0], mesh, total_steps),
            materials.hf,
            config.actor,
            algo,
            temperature=temperature,
            max_response_tokens=longest,
            timer=timer.with_on_enter(of_actor),
            update_loop=UpdateLoop(partial(of_actor, "actor.update")),
            keeps_earlier=config.rollout.ahead > 0,
        )

    def build_critic() -> Critic | ModelElsewhere:
        critics = world.critic
        if not critics.is_member:
            return ModelElsewhere()
        of_critic = partial(on_phase, group=critics.role)
        return Critic(
            _critic_learner(config, sources[-1], critics, total_steps),
            config.critic,
            algo,
            max_response_tokens=longest,
            timer=timer.with_on_enter(of_critic),
            update_loop=UpdateLoop(partial(of_critic, "critic.update")),
        )

    return Roles(
        config=config,
        world=world,
        actor=build_actor(),
        estimator=build_estimator(algo, config.data.rollout_batch_size, mesh, step_state, build_critic),
        engine=materials.build_engine(world.engine),
        grader=grader,
        gate=build_gate(
            config.rollout.consistency,
            algo,
            mesh,
            temperature=temperature,
            global_batch_size=config.actor.global_batch_size,
        ),
        sampling=materials.sampling,
        pad_id=materials.pad_id,
        eos_id=materials.eos_id,
        timer=timer,
        initial_weights=materials.initial_weights,
        step_state=step_state,
        safe_point=safe_point,
        outbox=outbox or Outbox(),
    )


def _actor_learner(config: Config, source: Source, mesh: Mesh, total_steps: int) -> Learner:
    """The learner of the actor, whose learning rate decays over the updates after the critic's warm-up. Collective."""
    warmup_steps, per_step = config.algo.critic_warmup_steps, _updates_per_step(config, config.actor)
    return build_learner(
        source,
        config.model,
        config.layout_of("actor"),
        config.actor.optim,
        mesh,
        total_updates=max(total_steps - warmup_steps, 1) * per_step,
        deterministic=config.trainer.deterministic,
        bad_updates=bad_updates_of(config.trainer, "actor", first_step=warmup_steps + 1, updates_per_step=per_step),
    )


def _critic_learner(config: Config, source: Source, mesh: Mesh, total_steps: int) -> Learner:
    """The learner of the critic, with a fresh value head where `source` is an actor. Collective."""
    per_step = _updates_per_step(config, config.critic)
    return build_learner(
        source,
        config.model,
        config.layout_of("critic"),
        config.critic.optim,
        mesh,
        total_updates=total_steps * per_step,
        deterministic=config.trainer.deterministic,
        critic_seed=config.trainer.seed,
        bad_updates=bad_updates_of(config.trainer, "critic", first_step=1, updates_per_step=per_step),
    )


def _updates_per_step(config: Config, role: ActorConfig | CriticConfig) -> int:
    samples = config.data.rollout_batch_size * config.rollout.n_samples_per_prompt
    return config.algo.ppo_epochs * samples // role.global_batch_size


def objective_notes(config: Config) -> list[str]:
    """One message where settings bound ratios that are all 1: those of the one update of a step."""
    algo = config.algo
    asked = [f"algo.{key}" for key in ("ratio_eps_high", "dual_clip") if getattr(algo, key) is not None]
    asked += ["algo.ratio_level=sequence"] * (algo.ratio_level == "sequence")
    asked += ["algo.policy_loss=cispo"] * (algo.policy_loss == "cispo")
    if not asked or algo.old_logprobs == "engine" or _updates_per_step(config, config.actor) > 1:
        return []
    return [
        f"{' and '.join(asked)}: without effect, since a step has one update and every policy ratio is 1 at a step's "
        "first update. A smaller actor.global_batch_size, or algo.ppo_epochs=2, makes more updates of a step."
    ]


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
