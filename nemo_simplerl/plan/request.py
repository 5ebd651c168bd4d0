"""The layout that a configuration asks for on a cluster."""

from dataclasses import replace
from typing import Any

from nemo_simplerl.config.load import Examined
from nemo_simplerl.config.placement import places_of
from nemo_simplerl.config.rules.layout import ranks_of
from nemo_simplerl.config.schema import ActorConfig, Config, CriticConfig, RolloutConfig
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan.engines.base import footprint_of
from nemo_simplerl.plan.layout import Cluster, Layout, Sizes, divides

_BYTES = {"bf16": 2, "fp32": 4}
_CRITICS_OWN = ("critic.tensor_model_parallel_size", "critic.pipeline_model_parallel_size")  # or null
# Keys read below that must be positive integers.
_COUNTS = (
    "actor.tensor_model_parallel_size",
    "actor.pipeline_model_parallel_size",
    "actor.context_parallel_size",
    "actor.micro_batch_size",
    "actor.forward_micro_batch_size",
    "actor.global_batch_size",
    "critic.micro_batch_size",
    "critic.forward_micro_batch_size",
    "critic.global_batch_size",
    "rollout.n_samples_per_prompt",
    "rollout.max_prompt_tokens",
    "rollout.max_response_tokens",
    "rollout.refit_bucket_mb",
    "data.rollout_batch_size",
    "algo.ppo_epochs",
    "reward.num_workers",
    "reward.memory_limit_mb",
)
_OTHERS = (
    "model.precision",
    *_CRITICS_OWN,
    *(f"{role}.{name}micro_batch_tokens" for role in ("actor", "critic") for name in ("", "forward_")),
    "actor.sequence_parallel",
    "actor.use_distributed_optimizer",
    "actor.offload_adam_states",
    "actor.recompute_granularity",
    "placement.actor",
    "placement.critic",
    "placement.engine",
    "rollout.ahead",
    "rollout.engine",
    "rollout.keep_groups",
    "rollout.max_rounds",
    "rollout.verify_refit",
    "algo.advantage",
    "algo.kl_coef",
    "algo.old_logprobs",
    "trainer.async_save",
    "reward.url",
)


def runnable_layout(found: Examined, cluster: Cluster) -> Layout | None:
    """The layout that a configuration asks for; None where it is not known or cannot be cut that way."""
    layout = requested_layout(found, cluster)
    if layout is None or not divides(layout, layout.tensor, layout.pipeline):
        return None
    if not all(layout.of(role).can_cut(sizes) for role, sizes in layout.sizes.items()):
        return None
    return layout


def requested_layout(found: Examined, cluster: Cluster) -> Layout | None:
    """The layout that a configuration asks for, though its sizes may not divide model or ranks; None if unknown."""
    config, shape = found.config, found.shape
    if shape is None or any(_is_reported(key, found.reported) for key in (*_COUNTS, *_OTHERS)):
        return None
    footprint = footprint_of(config.rollout.engine)
    if any(_is_reported(key, found.reported) for key in footprint.keys):
        return None
    counts = [_value(config, key) for key in (*_COUNTS, *_CRITICS_OWN)]
    if any(count is not None and count < 1 for count in counts) or not footprint.settings(config.rollout).is_possible:
        return None
    is_placed = ranks_of(config, cluster.world_size, "actor") is not None
    return _layout(found, shape, cluster) if is_placed and config.actor.context_parallel_size == 1 else None


def _layout(found: Examined, shape: ModelShape, cluster: Cluster) -> Layout:
    config = found.config
    actor, critic, rollout = config.actor, config.critic, config.rollout
    has_own_workers = config.reward.url is None
    places = places_of(config.placement, cluster.world_size, has_critic=config.algo.has_critic)
    engine = footprint_of(rollout.engine).settings(rollout)
    return Layout(
        shape=shape,
        critic_shape=found.critic_shape,
        cluster=cluster,
        placement=places,
        tensor=actor.tensor_model_parallel_size,
        pipeline=actor.pipeline_model_parallel_size,
        critic_cut=_critic_cut(config),
        sequence_parallel=actor.sequence_parallel,
        distributed_optimizer=actor.use_distributed_optimizer,
        offloads=actor.offload_adam_states and not cluster.gpu.is_cpu,
        saves_behind=config.trainer.async_save,
        recompute=actor.recompute_granularity,
        param_bytes=_BYTES[config.model.precision],
        fused=not cluster.gpu.is_cpu
        and config.model.transformer_engine is not False
        and config.model.precision == "bf16",
        actor=_sizes(actor, rollout),
        critic=_sizes(critic, rollout) if config.algo.has_critic else None,
        prompts=config.data.rollout_batch_size,
        samples_per_prompt=rollout.n_samples_per_prompt,
        ahead=rollout.ahead,
        max_rounds=rollout.max_rounds if rollout.keep_groups == "mixed" else 1,
        epochs=config.algo.ppo_epochs,
        old_logprobs_share=_old_logprobs_share(config),
        prompt_tokens=rollout.max_prompt_tokens,
        response_tokens=rollout.max_response_tokens,
        keeps_reference=config.algo.kl_coef > 0,
        engine=replace(engine, sleeps=engine.sleeps and not places.is_engine_apart),
        bucket_bytes=rollout.refit_bucket_mb * 2**20,
        verifies_refit=rollout.verify_refit != "off",
        reward_workers=config.reward.num_workers if has_own_workers else 0,
        reward_worker_bytes=config.reward.memory_limit_mb * 2**20,
    )


def _critic_cut(config: Config) -> tuple[int, int] | None:
    """The critic's tensor and pipeline sizes, where it has a layout of its own."""
    sizes = [
        (layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size)
        for layout in (config.layout_of("actor"), config.layout_of("critic"))
    ]
    return sizes[1] if config.algo.has_critic and sizes[0] != sizes[1] else None


def _old_logprobs_share(config: Config) -> float:
    """Under `engine` the trainer computes those of the first update, a sixteenth of the rollout at most."""
    samples = config.data.rollout_batch_size * config.rollout.n_samples_per_prompt
    return 1.0 if config.algo.old_logprobs == "trainer" else min(config.actor.global_batch_size / samples, 1 / 16)


def _sizes(section: ActorConfig | CriticConfig, rollout: RolloutConfig) -> Sizes:
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    packed, forward_packed = section.micro_batch_tokens, section.forward_micro_batch_tokens
    return Sizes(
        micro=section.micro_batch_size if packed is None else max(packed // longest, 1),
        forward_micro=section.forward_micro_batch_size if forward_packed is None else max(forward_packed // longest, 1),
        update=section.global_batch_size,
        is_packed=packed is not None,
    )


def _is_reported(key: str, reported: frozenset[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in reported)


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
