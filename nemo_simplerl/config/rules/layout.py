"""Rules of the ranks that roles live on, of the parallel layouts there, and of the batches that ranks share."""

import math
from collections.abc import Iterator

from nemo_simplerl.config.placement import Places, nodes_of, places_of, written
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


def roles_have_ranks(config: Config, world_size: int) -> Iterator[str]:
    """What `placement` says can be in a world of this size."""
    try:
        places_of(config.placement, world_size, has_critic=config.algo.has_critic)
    except ValueError as error:
        yield from str(error).splitlines()


def ranks_of(config: Config, world_size: int, role: str) -> range | None:
    """The ranks that a role lives on; None where `placement` contradicts itself, which has a rule of its own."""
    try:
        return places_of(config.placement, world_size, has_critic=config.algo.has_critic).of(role)
    except ValueError:
        return None


def layout_fits_the_ranks(config: Config, world_size: int, section: str) -> Iterator[str]:
    """A role's ranks divide into replicas of its model. A critic without sizes and ranks of its own has the actor's."""
    sizes = [_size(config, section, kind) for kind in ("tensor", "pipeline")]
    ranks = ranks_of(config, world_size, section)
    has_own_ranks = section == "actor" or ranks != ranks_of(config, world_size, "actor")
    if ranks is None or not (has_own_ranks or any(key.startswith(section) for key, _ in sizes)):
        return
    sizes.append(("actor.context_parallel_size", config.actor.context_parallel_size))
    needed = math.prod(size for _, size in sizes)
    product = " * ".join(f"{key}={size}" for key, size in sizes)
    count, or_else = len(ranks), f"or choose sizes whose product divides {len(ranks)}."
    if count % needed and count == world_size:
        yield (
            f"{product} = {needed} ranks a replica, but the run has {count}. Start {needed} ranks or a multiple "
            f"(torchrun --nproc_per_node {needed} -m nemo_simplerl ...), {or_else}"
        )
    elif count % needed:
        yield (
            f"{product} = {needed} ranks a replica, but the {section} has {count} of the run's {world_size} "
            f"(placement: {written(ranks)}). Give placement.{section} {needed} ranks or a multiple, {or_else}"
        )


def engines_fill_their_ranks(config: Config, world_size: int) -> Iterator[str]:
    """The ranks with engines divide into engines that span as many as their tensor size."""
    key, size = _engine_size(config)
    for role, ranks in _ranks_with_engines(config, world_size).items():
        if len(ranks) % size:
            where = f"{len(ranks)} ranks"
            if len(ranks) != world_size:
                where += f" (placement.{role}: {written(ranks)})"
            of_actor = " The warm start evaluates there: or set sft.eval_every=0." if role == "actor" else ""
            sizes = near_divisors(len(ranks), size)
            yield f"{key}={size} does not divide {where} into engines. Sizes that work: {sizes}.{of_actor}"


def engines_stay_on_their_nodes(config: Config, world_size: int, ranks_per_node: int) -> Iterator[str]:
    """No engine spans two nodes. Ranks are numbered node by node."""
    key, size = _engine_size(config)
    for ranks in _ranks_with_engines(config, world_size).values():
        if len(ranks) % size or (split := first_over_nodes(ranks, size, ranks_per_node)) is None:
            continue
        first, *_, last = nodes_of(split, ranks_per_node)
        yield (
            f"{key}={size} has an engine on the ranks {written(split)}, of the nodes {first} to {last}, and an engine "
            f"cannot span nodes. Choose a size that divides the {ranks_per_node} ranks of a node"
            + (", or place the engines from the first rank of a node on." if ranks.start % ranks_per_node else ".")
        )


def _ranks_with_engines(config: Config, world_size: int) -> dict[str, range]:
    """The ranks that engines are on, by the role they belong to: the actor's too where the warm start evaluates."""
    evaluates = config.sft.output is not None and config.sft.eval_every > 0 and config.data.eval_path is not None
    found: dict[str, range] = {}
    for role in ("engine", "actor") if evaluates else ("engine",):
        ranks = ranks_of(config, world_size, role)
        if ranks is not None and ranks not in found.values():
            found[role] = ranks
    return found


def first_over_nodes(ranks: range, size: int, ranks_per_node: int) -> range | None:
    """The first `size` ranks of `ranks`, counted off from its start, that lie on more than one node; None without."""
    shares = (range(first, first + size) for first in range(ranks.start, ranks.stop, size))
    return next((share for share in shares if len(nodes_of(share, ranks_per_node)) > 1), None)


def placement_notes(config: Config, places: Places) -> list[str]:
    """What has no effect, or may be more, with the roles of a run on these ranks."""
    own = getattr(config.rollout, config.rollout.engine, None)
    if own is None or not places.is_engine_apart or not own.sleep:
        return []
    name = config.rollout.engine
    share = next(key for key in ("free_gpu_memory_fraction", "gpu_memory_utilization") if hasattr(own, key))
    return [
        f"rollout.{name}.sleep=true has no effect where engines have ranks of their own ({written(places.engine)}): "
        f"they stay awake, and rollout.{name}.{share}={getattr(own, share):g} may be more."
    ]


def batch_splits(config: Config, world_size: int, section: str) -> Iterator[str]:
    """An update splits into whole micro-batches on every replica.

    With updates_fill_the_rollout it follows that the samples of a step split over the replicas too.
    """
    if section == "sft" and config.sft.output is None:
        return
    sizes = getattr(config, section)
    # Packed micro-batches have as many samples as there is room for.
    size, micro = sizes.global_batch_size, 1 if sizes.micro_batch_tokens else sizes.micro_batch_size
    ranks = ranks_of(config, world_size, "critic" if section == "critic" else "actor")
    replicas = 0 if ranks is None else _replicas(config, len(ranks), section)
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


def _engine_size(config: Config) -> tuple[str, int]:
    """The key of the ranks that one engine spans, and its value; for engines that have such a key."""
    name = config.rollout.engine
    return f"rollout.{name}.tensor_parallel_size", getattr(config.rollout, name).tensor_parallel_size


def _replicas(config: Config, num_ranks: int, section: str) -> int:
    """Data-parallel size; 0 where the layout does not fit, which has a rule of its own."""
    ranks = math.prod(_size(config, section, kind)[1] for kind in ("tensor", "pipeline"))
    ranks *= config.actor.context_parallel_size
    return 0 if num_ranks % ranks else num_ranks // ranks
