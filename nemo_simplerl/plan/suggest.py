"""Layouts that fit, cheapest first, and the first change to make to one that does not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nemo_simplerl.plan.engines.base import footprint_of
from nemo_simplerl.plan.layout import Layout, Sizes, divides, halves
from nemo_simplerl.plan.memory import Memory, memory

# The model of `cost`; none is measured.
_RECOMPUTE = {None: 1.0, "selective": 1.03, "full": 4 / 3}  # full: a second forward pass, of 4 instead of 3
_TENSOR = 0.04  # share of time that each further tensor rank of a node adds in communication
_TENSOR_OVER_NODES = 0.4
_SMALL_MICRO_BATCH = 0.15  # share of time that short matrix products lose at a micro-batch of 1; half of it at 2
_MICRO_BATCHES = (1, 2, 4, 8, 16)
COST = (
    "recompute (1, selective 1.03, full 4/3) x (1 + 0.04 (TP - 1) in a node, 0.4 across) x pipeline bubble "
    "(m + PP - 1) / m x (1 + 0.15 / micro batch)"
)


@dataclass(frozen=True)
class Change:
    """Settings to make, as overrides, with the layout and the memory that follow."""

    text: str
    layout: Layout
    memory: Memory


@dataclass(frozen=True)
class Refusal:
    """Why no layout with these sizes can run."""

    tensor: int
    pipeline: int
    reason: str


def cost(layout: Layout) -> float:
    """Time of an update per token, relative to one GPU without communication. Rough: it ranks, it predicts nothing."""
    is_in_node = layout.cluster.gpus_per_node % layout.tensor == 0
    communication = 1 + (_TENSOR if is_in_node else _TENSOR_OVER_NODES) * (layout.tensor - 1)
    count = layout.micro_batches(layout.actor)
    bubble = (count + layout.pipeline - 1) / count
    return _RECOMPUTE[layout.recompute] * communication * bubble * (1 + _SMALL_MICRO_BATCH / layout.actor.micro)


def suggestions(layout: Layout) -> tuple[list[Change], list[Refusal]]:
    """For each tensor and pipeline size the cheapest layout that fits, cheapest first; and why the others do not."""
    fitting: list[Change] = []
    refused: list[Refusal] = []
    world, layers = layout.cluster.world_size, layout.shape.num_layers
    for tensor in _powers_and(layout.tensor, world):
        for pipeline in _powers_and(layout.pipeline, min(world // tensor, layers)):
            reason = _why_not(layout, tensor, pipeline)
            if reason is not None:
                refused.append(Refusal(tensor, pipeline, reason))
                continue
            best: Change | None = None
            for change in _variants(layout, tensor, pipeline):
                if best is None or change.memory.fits or change.memory.headroom > best.memory.headroom:
                    best = change
                if change.memory.fits:
                    break
            if best is None:
                refused.append(Refusal(tensor, pipeline, "no micro-batch divides an update over the replicas"))
            elif best.memory.fits:
                fitting.append(best)
            else:
                refused.append(Refusal(tensor, pipeline, shortage(best.memory)))
    # Among equal costs, the layout with more memory to spare comes first.
    return sorted(fitting, key=lambda change: (cost(change.layout), -change.memory.headroom)), refused


def shortage(found: Memory) -> str:
    """The phase or cache that does not fit, in words."""
    worst = found.worst
    largest = max(worst.parts, key=lambda name: worst.parts[name])
    if found.headroom < 0:
        return f"{worst.name} lacks {_gib(-found.headroom)} (most of it: {largest}, {_gib(worst.parts[largest])})"
    return "the KV cache has no room for one sequence"


def first_change(layout: Layout) -> tuple[Change, bool] | None:
    """The gentlest single change that makes the layout fit, and True; or the one that helps most, and False."""
    now = memory(layout)
    tried = [Change(text, changed, memory(changed)) for text, changed in _changes(layout)]
    if enough := next((change for change in tried if change.memory.fits), None):
        return enough, True
    best = max(tried, key=lambda change: change.memory.headroom, default=None)
    return (best, False) if best is not None and best.memory.headroom > now.headroom else None


def _keys(layout: Layout) -> str:
    """The overrides that ask for a layout; those of its engine are left out."""
    flags = {True: "true", False: "false"}
    return " ".join(
        [
            f"actor.tensor_model_parallel_size={layout.tensor}",
            f"actor.pipeline_model_parallel_size={layout.pipeline}",
            f"actor.sequence_parallel={flags[layout.sequence_parallel]}",
            f"actor.use_distributed_optimizer={flags[layout.distributed_optimizer]}",
            f"actor.recompute_granularity={layout.recompute or 'null'}",
            *(_micro_batch(role, getattr(layout, role), layout) for role in ("actor", "critic")),
        ]
    )


def _micro_batch(role: str, sizes: Sizes, layout: Layout) -> str:
    if sizes.is_packed:
        return f"{role}.micro_batch_tokens={sizes.micro * layout.max_tokens}"
    return f"{role}.micro_batch_size={sizes.micro}"


def _why_not(layout: Layout, tensor: int, pipeline: int) -> str | None:
    for role, shape in layout.shapes.items():
        of_role = "" if layout.critic_shape is None else f" of the {role}"
        for count, name in (
            (shape.num_attention_heads, "attention heads"),
            (shape.num_query_groups, "query groups"),
            (shape.ffn_hidden_size, "ffn_hidden_size"),
        ):
            if count % tensor:
                return f"TP {tensor} does not divide {count} {name}{of_role}"
        if shape.num_layers % pipeline:
            return f"PP {pipeline} does not divide {shape.num_layers} layers{of_role}"
    world = layout.cluster.world_size
    return None if divides(layout, tensor, pipeline) else f"{tensor * pipeline} does not divide {world} ranks"


def _variants(layout: Layout, tensor: int, pipeline: int) -> Iterator[Change]:
    """Ways to run these sizes, cheapest first."""
    data = layout.cluster.world_size // (tensor * pipeline)
    micros = [
        micro
        for micro in _MICRO_BATCHES
        if not any(role.update % (data * micro) for role in (layout.actor, layout.critic))
    ]
    # The engine as it is asked for, then with less memory.
    for engine_keys, base in (("", layout), *_engine_changes(layout)):
        found = [
            replace(
                base,
                tensor=tensor,
                pipeline=pipeline,
                sequence_parallel=tensor > 1,
                distributed_optimizer=data > 1,
                recompute=recompute,
                actor=replace(layout.actor, micro=micro),
                critic=replace(layout.critic, micro=micro),
            )
            for micro in micros
            for recompute in _RECOMPUTE
        ]
        for variant in sorted(found, key=cost):
            yield Change(f"{_keys(variant)} {engine_keys}".rstrip(), variant, memory(variant))


def _changes(layout: Layout) -> Iterator[tuple[str, Layout]]:
    """Single changes that save memory, from those that cost no time to those that cost much."""
    if layout.data > 1 and not layout.distributed_optimizer:
        yield "actor.use_distributed_optimizer=true", replace(layout, distributed_optimizer=True)
    if layout.tensor > 1 and not layout.sequence_parallel:
        yield "actor.sequence_parallel=true", replace(layout, sequence_parallel=True)
    if not layout.offloads and not layout.cluster.gpu.is_cpu:
        yield "actor.offload_adam_states=true", replace(layout, offloads=True)
    yield from _engine_changes(layout)
    for role in ("actor", "critic"):
        sizes: Sizes = getattr(layout, role)
        for micro in halves(sizes.micro):
            fewer = replace(sizes, micro=micro)
            yield _micro_batch(role, fewer, layout), _with(layout, role, fewer)
        for micro in halves(sizes.forward_micro):
            key, unit = ("tokens", layout.max_tokens) if sizes.is_packed else ("size", 1)
            smaller = _with(layout, role, replace(sizes, forward_micro=micro))
            yield f"{role}.forward_micro_batch_{key}={micro * unit}", smaller
    for kind in ("selective", "full"):
        if layout.recompute is None or (layout.recompute, kind) == ("selective", "full"):
            yield f"actor.recompute_granularity={kind}", replace(layout, recompute=kind)
    world = layout.cluster.world_size
    for key, now in (("tensor", layout.tensor), ("pipeline", layout.pipeline)):
        for size in (size for size in range(now + 1, world + 1) if size % now == 0):
            changed = _with(layout, key, size)
            if divides(layout, changed.tensor, changed.pipeline):
                yield f"actor.{key}_model_parallel_size={size}", changed


def _engine_changes(layout: Layout) -> Iterator[tuple[str, Layout]]:
    yield from footprint_of(layout.engine.name).changes(layout)
    smaller = 64 * 2**20
    if layout.bucket_bytes > smaller:
        yield "rollout.refit_bucket_mb=64", replace(layout, bucket_bytes=smaller)


def _with(layout: Layout, name: str, value: Any) -> Layout:
    changes: dict[str, Any] = {name: value}
    return replace(layout, **changes)


def _powers_and(own: int, most: int) -> list[int]:
    """Powers of two up to `most`, and the size in use."""
    return sorted({1 << shift for shift in range(most.bit_length())} | {own})


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
