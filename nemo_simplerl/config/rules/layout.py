"""Rules of the parallel layout, and of the batches that its ranks share."""

import math
from collections.abc import Iterator

from nemo_simplerl.config.rules.numbers import listed, near_divisors, near_multiples
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape


def sequence_parallel_needs_tensor_parallel(config: Config) -> Iterator[str]:
    sections = ("actor", "critic") if config.algo.has_critic else ("actor",)
    if config.actor.sequence_parallel and all(_size(config, section, "tensor")[1] == 1 for section in sections):
        yield (
            "actor.sequence_parallel=true splits activations over tensor-parallel ranks, but "
            "actor.tensor_model_parallel_size=1. Set actor.sequence_parallel=false, or a tensor size above 1."
        )


def updates_fill_the_rollout(config: Config, section: str) -> Iterator[str]:
    size = getattr(config, section).global_batch_size
    prompts, n = config.data.rollout_batch_size, config.rollout.n_samples_per_prompt
    if prompts * n % size:
        yield (
            f"{section}.global_batch_size={size} does not divide the samples of a step: "
            f"data.rollout_batch_size={prompts} * rollout.n_samples_per_prompt={n} = {prompts * n}. "
            f"Sizes that work near it: {near_divisors(prompts * n, size)}."
        )


def tensor_parallel_splits_the_layers(
    config: Config, shape: ModelShape, whose: str = "model", section: str = "actor"
) -> Iterator[str]:
    key, size = _size(config, section, "tensor")
    parts = {
        "attention heads": shape.num_attention_heads,
        "query groups": shape.num_query_groups,
        "ffn_hidden_size": shape.ffn_hidden_size,
    }
    wrong = [f"{count} {name}" for name, count in parts.items() if count % size]
    if wrong:
        fits = [n for n in range(1, shape.num_query_groups + 1) if not any(count % n for count in parts.values())]
        yield (f"{key}={size} does not divide the {whose}'s {' and '.join(wrong)}. Sizes that work: {listed(fits)}.")


def pipeline_stages_are_equal(
    config: Config, shape: ModelShape, whose: str = "model", section: str = "actor"
) -> Iterator[str]:
    key, size = _size(config, section, "pipeline")
    if shape.num_layers % size:
        yield (
            f"{key}={size} does not divide the {whose}'s {shape.num_layers} layers. "
            f"Sizes that work: {near_divisors(shape.num_layers, size)}."
        )


def critics_sizes_split_the_actors_model(config: Config, shape: ModelShape) -> Iterator[str]:
    """Where the critic begins as the actor's model, its own sizes cut that one."""
    if config.algo.has_critic and config.critic.path is None:
        if config.critic.tensor_model_parallel_size is not None:
            yield from tensor_parallel_splits_the_layers(config, shape, section="critic")
        if config.critic.pipeline_model_parallel_size is not None:
            yield from pipeline_stages_are_equal(config, shape, section="critic")


def layout_fits_the_ranks(config: Config, world_size: int, section: str) -> Iterator[str]:
    """The ranks divide into replicas of the section's model. A critic without sizes of its own has the actor's."""
    sizes = [_size(config, section, kind) for kind in ("tensor", "pipeline")]
    if not any(key.startswith(section) for key, _ in sizes):
        return
    sizes.append(("actor.context_parallel_size", config.actor.context_parallel_size))
    needed = math.prod(size for _, size in sizes)
    if world_size % needed:
        yield (
            f"{' * '.join(f'{key}={size}' for key, size in sizes)} = {needed} ranks a replica, but the run "
            f"has {world_size}. Start {needed} ranks or a multiple (torchrun --nproc_per_node {needed} "
            f"-m nemo_simplerl ...), or choose sizes whose product divides {world_size}."
        )


def batch_splits(config: Config, world_size: int, section: str) -> Iterator[str]:
    """An update splits into whole micro-batches on every replica.

    With updates_fill_the_rollout it follows that the samples of a step split over the replicas too.
    """
    if section == "sft" and config.sft.output is None:
        return
    sizes = getattr(config, section)
    # Packed micro-batches have as many samples as there is room for.
    size, micro = sizes.global_batch_size, 1 if sizes.micro_batch_tokens else sizes.micro_batch_size
    replicas = _replicas(config, world_size, section)
    if replicas and size % (micro * replicas):
        unit = micro * replicas
        yield (
            f"{section}.global_batch_size={size} is not a multiple of {section}.micro_batch_size={micro} "
            f"* {replicas} data-parallel replicas = {unit}. "
            f"Use {near_multiples(unit, size)}, or a smaller micro-batch."
        )


def _size(config: Config, section: str, kind: str) -> tuple[str, int]:
    """The key that decides the tensor or pipeline size of a section's model, and its value."""
    key = f"{kind}_model_parallel_size"
    own = getattr(config.critic, key) if section == "critic" else None
    return (f"actor.{key}", getattr(config.actor, key)) if own is None else (f"critic.{key}", own)


def _replicas(config: Config, world_size: int, section: str) -> int:
    """Data-parallel size; 0 where the layout does not fit, which has a rule of its own."""
    ranks = math.prod(_size(config, section, kind)[1] for kind in ("tensor", "pipeline"))
    ranks *= config.actor.context_parallel_size
    return 0 if world_size % ranks else world_size // ranks
