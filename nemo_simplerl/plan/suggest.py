"""Layouts that fit, by the time that a step takes in them, and the first change to make to one that does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from nemo_simplerl.plan.decoding import even_batches
from nemo_simplerl.plan.engines.base import footprint_of
from nemo_simplerl.plan.layout import Layout, Sizes, divides, halves
from nemo_simplerl.plan.memory import Memory, memory
from nemo_simplerl.plan.step_time import StepTime, step_time

_RECOMPUTE = (None, "selective", "full")
_MICRO_BATCHES = (1, 2, 4, 8, 16)
# Share of the memory that should stay free: caches and gradients come and go in blocks, which stay with torch.
_SPARED = 0.05


@dataclass(frozen=True)
class Change:
    """Settings to make, as overrides, with the layout, the memory and the time of a step that follow."""

    text: str
    layout: Layout

    @cached_property
    def memory(self) -> Memory:
        return memory(self.layout)

    @cached_property
    def time(self) -> StepTime:
        return step_time(self.layout)

    @property
    def seconds(self) -> float:
        """Seconds of a step, in the middle of the estimated range: what layouts are ranked by."""
        return self.time.total.middle


@dataclass(frozen=True)
class Refusal:
    """Why no layout with these sizes can run."""

    tensor: int
    pipeline: int
    reason: str


def suggestions(layout: Layout) -> tuple[list[Change], list[Refusal]]:
    """For each tensor and pipeline size the fastest layout that fits, fastest first; and why the others do not."""
    fitting: list[Change] = []
    refused: list[Refusal] = []
    world, layers = layout.num_ranks, layout.shape.num_layers
    for tensor in _powers_and(layout.tensor, world):
        for pipeline in _powers_and(layout.pipeline, min(world // tensor, layers)):
            reason = _why_not(layout, tensor, pipeline)
            if reason is not None:
                refused.append(Refusal(tensor, pipeline, reason))
                continue
            best = _best(layout, tensor, pipeline)
            if best is None:
                refused.append(Refusal(tensor, pipeline, "no micro-batch divides an update over the replicas"))
            elif best.memory.fits:
                fitting.append(best)
            else:
                refused.append(Refusal(tensor, pipeline, shortage(best.memory)))
    # Among equals, the layout with more memory to spare comes first.
    return sorted(fitting, key=lambda change: (round(change.seconds, 3), -change.memory.headroom)), refused


def faster_batch(layout: Layout) -> Change | None:
    """The larger batch of the rollout that makes a step shortest and leaves memory to spare; None where none does."""
    found = [Change(text, changed) for text, changed in _larger_batches(layout)]
    best = min(filter(_spares, found), key=lambda change: change.seconds, default=None)
    return best if best is not None and best.seconds < step_time(layout).total.middle else None


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
    tried = [Change(text, changed) for text, changed in _changes(layout)]
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
            *(_micro_batch(role, sizes, layout) for role, sizes in layout.sizes.items()),
        ]
    )


def _micro_batch(role: str, sizes: Sizes, layout: Layout) -> str:
    if sizes.is_packed:
        return f"{role}.micro_batch_tokens={sizes.micro * layout.max_tokens}"
    return f"{role}.micro_batch_size={sizes.micro}"


def _why_not(layout: Layout, tensor: int, pipeline: int) -> str | None:
    for role, shape in layout.shapes.items():
        if role == "critic" and layout.critic_cut is not None:
            continue
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
    if divides(layout, tensor, pipeline):
        return None
    ranks = sorted({layout.of(role).num_ranks for role in layout.sizes})
    return f"{tensor * pipeline} does not divide {' and '.join(map(str, ranks))} ranks"


def _best(layout: Layout, tensor: int, pipeline: int) -> Change | None:
    """The fastest way to run these sizes, with memory to spare where one of its kind has it; where none fits, the one
    that lacks least; None where nothing divides."""
    tried: list[Change] = []
    for variants in _variants(layout, tensor, pipeline):
        for is_good in (_spares, _fits):
            if (found := next(filter(is_good, variants), None)) is not None:
                return found
        tried += variants
    return max(tried, key=lambda change: change.memory.headroom, default=None)


def _fits(change: Change) -> bool:
    return change.memory.fits


def _spares(change: Change) -> bool:
    return change.memory.fits and change.memory.headroom >= _SPARED * change.memory.capacity


def _variants(layout: Layout, tensor: int, pipeline: int) -> Iterator[list[Change]]:
    """Ways to run these sizes, fastest first: with the engine as it is asked for or with larger batches, then with each
    change that has it take less memory."""
    cut = replace(layout, tensor=tensor, pipeline=pipeline)
    micros = [
        micro
        for micro in _MICRO_BATCHES
        if not any(sizes.update % (cut.of(role).data * micro) for role, sizes in layout.sizes.items())
    ]
    for engines in ([("", layout), *_larger_batches(layout)], *([change] for change in _engine_changes(layout))):
        found = []
        for (engine_keys, base), micro, recompute in product(engines, micros, _RECOMPUTE):
            variant = replace(
                base.resized(micro=micro),
                tensor=tensor,
                pipeline=pipeline,
                sequence_parallel=tensor > 1,
                distributed_optimizer=cut.data > 1,
                recompute=recompute,
            )
            found.append(Change(f"{_keys(variant)} {engine_keys}".rstrip(), variant))
        yield sorted(found, key=lambda change: change.seconds)


def _larger_batches(layout: Layout) -> Iterator[tuple[str, Layout]]:
    engine = layout.engine
    for size in even_batches(layout):
        if size > engine.batch:
            yield f"{engine.batch_key}={size}", replace(layout, engine=replace(engine, batch=size))


def _changes(layout: Layout) -> Iterator[tuple[str, Layout]]:
    """Single changes that save memory, from those that cost no time to those that cost much."""
    if layout.data > 1 and not layout.distributed_optimizer:
        yield "actor.use_distributed_optimizer=true", replace(layout, distributed_optimizer=True)
    if layout.tensor > 1 and not layout.sequence_parallel:
        yield "actor.sequence_parallel=true", replace(layout, sequence_parallel=True)
    if not layout.offloads and not layout.cluster.gpu.is_cpu:
        yield "actor.offload_adam_states=true", replace(layout, offloads=True)
    yield from _engine_changes(layout)
    for role, sizes in layout.sizes.items():
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
    world = layout.num_ranks
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
