"""From a configuration to the roles of a run: mesh, models, engine, grader, prompts."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from nemo_simplerl.config.schema import Config, OptimConfig
from nemo_simplerl.data.problems import Prompt, load_problems, render_prompts
from nemo_simplerl.data.tokenizer import check_vocab, load_tokenizer, stop_ids
from nemo_simplerl.model.network.provider import build_gpt_model, kernel_options, read_hf_config, use_transformer_engine
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import fingerprint, kind_of, open_source
from nemo_simplerl.parallel.mesh import Mesh, build_mesh
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.trainer.guard import finite
from nemo_simplerl.trainer.guard.finite import BadUpdates
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.learners.updates import UpdateSeries
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.saving.step_state import StepInHand
from nemo_simplerl.trainer.setup.grader import Grader
from nemo_simplerl.trainer.setup.prepare import model_folder

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def mesh_of(config: Config) -> Mesh:
    """Join the world in the actor's layout. Collective."""
    actor = config.actor
    return build_mesh(
        tensor_model_parallel_size=actor.tensor_model_parallel_size,
        pipeline_model_parallel_size=actor.pipeline_model_parallel_size,
        context_parallel_size=actor.context_parallel_size,
        timeout_s=config.trainer.distributed_timeout_s,
    )


def tokenizer_of(config: Config):
    """The tokenizer, checked against the model's vocabulary."""
    tokenizer = load_tokenizer(model_folder(config))
    check_vocab(tokenizer, hf_config_of_run(config)["vocab_size"])
    return tokenizer


def hf_config_of_run(config: Config) -> dict:
    """config.json of the run's model."""
    return read_hf_config(model_folder(config))


def build_learner(
    config: Config,
    path: str,
    optim: OptimConfig,
    mesh: Mesh,
    *,
    total_updates: int,
    is_critic: bool = False,
    offload_adam_states: bool = False,
    bad_updates: BadUpdates | None = None,
) -> Learner:
    """The model on disk at `path` in this rank's shard, with its optimizer. Collective.

    A critic may start from an actor, with a fresh value head. `offload_adam_states` is for a learner that shares the
    device with others.
    """
    dtype = DTYPES[config.model.precision]
    transformer_engine = use_transformer_engine(config.model.transformer_engine, dtype)
    source = open_source(path, critic=is_critic and path == config.critic.path and kind_of(path) == "checkpoint")
    gpt = build_gpt_model(
        source.hf,
        config.actor,
        mesh,
        dtype=dtype,
        transformer_engine=transformer_engine,
        critic_seed=config.trainer.seed if is_critic else None,
        deterministic=config.trainer.deterministic,
        kernels=kernel_options(config.model, transformer_engine=transformer_engine),
    )
    load_weights(gpt, source, mesh)
    return Learner(
        gpt,
        optim,
        mesh,
        total_updates=total_updates,
        use_distributed_optimizer=config.actor.use_distributed_optimizer,
        overlap_grad_reduce=config.actor.overlap_grad_reduce,
        offload_adam_states=offload_adam_states,
        bad_updates=bad_updates,
    )


def origin_of(config: Config, model_path: str) -> str:
    """Fingerprint of the weights that actor and critic start from, which may be others at the same paths."""
    critic = config.critic.path
    sources = [open_source(model_path)]
    if critic is not None:
        sources.append(open_source(critic, critic=kind_of(critic) == "checkpoint"))
    return " ".join(fingerprint(source) for source in sources)


def bad_updates(
    config: Config, role: str, first_step: int, updates_per_step: int, say: Callable[[str], None]
) -> BadUpdates:
    """Where the updates of a model go that are left out."""
    trainer = config.trainer
    folder = Path(trainer.run_dir) / finite.FOLDER
    return BadUpdates(folder, role, first_step, updates_per_step, trainer.max_bad_updates, say)


def build_prompts(
    config: Config, tokenizer, path: str | None, limit: int | None = None
) -> tuple[list[Prompt], list[str]]:
    """The first `limit` prompts of a file of problems (no path: none), and what happened to it in words."""
    if path is None:
        return [], []
    data, max_tokens = config.data, config.rollout.max_prompt_tokens
    problems, num_without_gold = load_problems(
        path, data.question_field, data.answer_field, without_gold=data.rows_without_gold
    )
    prompts, report = render_prompts(
        problems,
        tokenizer,
        data.template,
        trailing_newline=data.prompt_trailing_newline,
        max_prompt_tokens=max_tokens,
        overlong=data.overlong_prompts,
    )
    parts = [f"{report.num_kept} prompts, the longest of {report.longest} tokens (limit {max_tokens})"]
    if num_without_gold:
        parts.append(f"{num_without_gold} rows left out that have no gold answer")
    if report.num_dropped:
        parts.append(f"{report.num_dropped} dropped as too long")
    if report.num_truncated:
        parts.append(f"{report.num_truncated} cut to the limit")
    return prompts[:limit], [f"{path}: " + ", ".join(parts)]


def sampling_of(config: Config, tokenizer) -> SamplingParams:
    """How rollout.* says to sample."""
    rollout = config.rollout
    return SamplingParams(
        n=rollout.n_samples_per_prompt,
        max_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=tuple(rollout.stop),
        stop_token_ids=stop_ids(tokenizer, rollout.stop, rollout.stop_token_ids),
    )


def build_engine(config: Config, model_path: str, mesh: Mesh, tokenizer) -> RolloutEngine:
    """The engine that rollout.engine names, for this rank. Collective."""
    rollout = config.rollout
    values = {
        "tokenizer": tokenizer,
        "device": mesh.device,
        "dtype": DTYPES[config.model.precision],
        "max_model_len": rollout.max_prompt_tokens + rollout.max_response_tokens,
    }
    if rollout.engine == "trtllm":
        from nemo_simplerl.rollout.trtllm.engine import TrtllmEngine, engine_group

        group = engine_group(rollout.trtllm.tensor_parallel_size)
        return TrtllmEngine(model_path, settings=rollout.trtllm, group=group, **values)
    return HfEngine(model_path, max_batch_size=rollout.max_batch_size, **values)


def build_roles(
    config: Config,
    model_path: str,
    mesh: Mesh,
    tokenizer,
    grader: Grader,
    say: Callable[[str], None],
    *,
    total_steps: int,
    in_hand: StepInHand,
    reached: Callable[[str], None],
) -> Roles:
    """Actor, critic, reference and engine started from `model_path`. Collective.

    reached: called at the beginning of every phase, and before every update as actor.update or critic.update.
    """
    algo, rollout = config.algo, config.rollout
    samples = config.data.rollout_batch_size * rollout.n_samples_per_prompt
    actor_updates, critic_updates = (
        algo.ppo_epochs * samples // section.global_batch_size for section in (config.actor, config.critic)
    )
    first_actor_step = algo.critic_warmup_steps + 1
    offload = config.actor.offload_adam_states
    actor_learner = build_learner(
        config,
        model_path,
        config.actor.optim,
        mesh,
        total_updates=max(total_steps - algo.critic_warmup_steps, 1) * actor_updates,
        offload_adam_states=offload,
        bad_updates=bad_updates(config, "actor", first_actor_step, actor_updates, say),
    )
    critic_learner = build_learner(
        config,
        config.critic.path or model_path,
        config.critic.optim,
        mesh,
        total_updates=total_steps * critic_updates,
        is_critic=True,
        offload_adam_states=offload,
        bad_updates=bad_updates(config, "critic", 1, critic_updates, say),
    )
    timer = PhaseTimer(on_enter=reached)
    return Roles(
        config=config,
        mesh=mesh,
        actor=Actor(
            actor_learner,
            hf_config_of_run(config),
            config.actor,
            algo,
            temperature=rollout.temperature,
            timer=timer,
            series=UpdateSeries(partial(reached, "actor.update")),
        ),
        critic=Critic(
            critic_learner,
            config.critic,
            algo,
            timer=timer,
            series=UpdateSeries(partial(reached, "critic.update")),
        ),
        engine=build_engine(config, str(model_folder(config)), mesh, tokenizer),
        grader=grader,
        sampling=sampling_of(config, tokenizer),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        timer=timer,
        say=say,
        origin=origin_of(config, model_path),
        in_hand=in_hand,
    )
