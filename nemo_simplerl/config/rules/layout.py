"""Rules of the parallel layout, and of the batches that its ranks share."""

from collections.abc import Iterator

from nemo_simplerl.config.rules.numbers import listed, near_divisors, near_multiples
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape


def sequence_parallel_needs_tensor_parallel(config: Config) -> Iterator[str]:
    if config.actor.sequence_parallel and config.actor.tensor_model_parallel_size == 1:
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


def tensor_parallel_splits_the_layers(config: Config, shape: ModelShape, whose: str = "model") -> Iterator[str]:
    size = config.actor.tensor_model_parallel_size
    parts = {
        "attention heads": shape.num_attention_heads,
        "query groups": shape.num_query_groups,
        "ffn_hidden_size": shape.ffn_hidden_size,
    }
    wrong = [f"{count} {name}" for name, count in parts.items() if count % size]
    if wrong:
        fits = [n for n in range(1, shape.num_query_groups + 1) if not any(count % n for count in parts.values())]
        yield (
            f"actor.tensor_model_parallel_size={size} does not divide the {whose}'s {' and '.join(wrong)}. "
            f"Sizes that work: {listed(fits)}."
        )


def pipeline_stages_are_equal(config: Config, shape: ModelShape, whose: str = "model") -> Iterator[str]:
    size = config.actor.pipeline_model_parallel_size
    if shape.num_layers % size:
        yield (
            f"actor.pipeline_model_parallel_size={size} does not divide the {whose}'s {shape.num_layers} "
            f"layers. Sizes that work: {near_divisors(shape.num_layers, size)}."
        )


def layout_fits_the_ranks(config: Config, world_size: int) -> Iterator[str]:
    if world_size % _model_parallel_size(config):
        actor, needed = config.actor, _model_parallel_size(config)
        yield (
            f"actor.tensor_model_parallel_size={actor.tensor_model_parallel_size} * "
            f"pipeline_model_parallel_size={actor.pipeline_model_parallel_size} * "
            f"context_parallel_size={actor.context_parallel_size} = {needed} ranks a replica, but the run "
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
    replicas = _replicas(config, world_size)
    if replicas and size % (micro * replicas):
        unit = micro * replicas
        yield (
            f"{section}.global_batch_size={size} is not a multiple of {section}.micro_batch_size={micro} "
            f"* {replicas} data-parallel replicas = {unit}. "
            f"Use {near_multiples(unit, size)}, or a smaller micro-batch."
        )


def _model_parallel_size(config: Config) -> int:
    actor = config.actor
    return actor.tensor_model_parallel_size * actor.pipeline_model_parallel_size * actor.context_parallel_size


def _replicas(config: Config, world_size: int) -> int:
    """Data-parallel size; 0 where the layout does not fit, which has a rule of its own."""
    return 0 if world_size % _model_parallel_size(config) else world_size // _model_parallel_size(config)
