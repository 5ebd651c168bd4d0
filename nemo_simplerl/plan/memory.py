"""Memory of a run, phase by phase: bytes on the GPU that needs most, and in a node's host memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_simplerl.plan.activations import forward_activations, update_activations
from nemo_simplerl.plan.engines.base import Cache, engine_weights, footprint_of
from nemo_simplerl.plan.layout import Layout
from nemo_simplerl.plan.shapes import largest_tensor, qkv_width, rank_parameters

# Adam in float32: two moments; in bf16 training the weights' float32 masters too. Gradients are summed in float32.
_MOMENTS, _MASTER, _GRADIENT = 8, 4, 4
# A rollout as tensors, bytes per sample and position: tokens (8) and four masks or log-probabilities (16), the same
# again in the updates' order, and seven float32 columns: old, reference, KL, rewards, two advantages, gate; a critic's
# values and returns beside them.
_TENSORS, _CRITIC_COLUMNS = 24, 2 * 4
_BATCH = 2 * _TENSORS + 7 * 4
_DIGEST_WORK = 3 * 2**25  # rollout/digest.py: words, weights and products of 2**22 words
_SAVED = (" weights", " optimizer")  # of `resident`
_PROCESS = 3 * 2**30  # host memory of a trainer process before anything is loaded; an estimate


@dataclass(frozen=True)
class Phase:
    """Bytes on a GPU at the worst moment of a phase, by name."""

    name: str
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a run. Each phase is that of the pipeline stage that needs most in it."""

    capacity: int
    phases: tuple[Phase, ...]
    cache: Cache
    host: dict[str, int]  # of one node, by name

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def headroom(self) -> int:
        """Bytes to spare in the worst phase; below 0 the run does not fit."""
        return self.capacity - self.worst.peak

    @property
    def fits(self) -> bool:
        return self.headroom >= 0 and self.cache.sequences >= 1


def memory(layout: Layout) -> Memory:
    capacity = layout.cluster.gpu.capacity(footprint_of(layout.engine.name).process_bytes)
    by_place = [_phases(layout, stages, capacity) for stages in layout.places]
    worst = tuple(
        max(same, key=lambda phase: phase.peak) for same in zip(*(phases for phases, _ in by_place), strict=True)
    )
    # Engines of different stages' GPUs share the work: the smallest cache is the one to plan with.
    cache = min((cache for _, cache in by_place), key=lambda cache: cache.sequences)
    return Memory(capacity=capacity, phases=worst, cache=cache, host=host_memory(layout))


def resident(layout: Layout, stage: int, *, critic: bool, stepped: bool = True) -> dict[str, int]:
    """Bytes of one role's weights, gradients and optimizer on one rank; without moments before the first update.

    layout: as the role's model is cut (Layout.of).
    """
    shape = layout.shape_of(critic=critic)
    count = rank_parameters(shape, layout.tensor, layout.pipeline, stage, critic=critic)
    share = -(-count // layout.data) if layout.distributed_optimizer else count
    state = (_MASTER if layout.param_bytes == 2 else 0) + (_MOMENTS if stepped else 0)
    role = "critic" if critic else "actor"
    return {
        f"{role} weights": count * layout.param_bytes,
        f"{role} gradients": count * _GRADIENT,
        f"{role} optimizer": share * state,
    }


def held(layout: Layout, stages: Mapping[str, int], *, updating: Sequence[str], stepped: bool = True) -> dict[str, int]:
    """`resident` of all roles together; where they offload, gradients and optimizer of those in `updating` alone.

    stages: the pipeline stage of each role's model.
    """
    parts: dict[str, int] = {}
    for role, stage in stages.items():
        for name, size in resident(layout.of(role), stage, critic=role == "critic", stepped=stepped).items():
            if role in updating or not layout.offloads or name == f"{role} weights":
                parts[name] = size
    return parts


def host_memory(layout: Layout) -> dict[str, int]:
    """Most bytes in the host memory of one node, by name."""
    ranks = layout.cluster.gpus_per_node
    parts = {"trainer processes": ranks * _PROCESS}
    if layout.keeps_reference:
        parts["reference weights"] = ranks * _reference(layout)
    if layout.offloads:
        parts["offloaded optimizers"] = ranks * max(
            sum(
                size
                for name, size in held(layout, stages, updating=tuple(layout.sizes)).items()
                if name.endswith(" optimizer")
            )
            for stages in layout.places
        )
    if layout.saves_behind:
        parts["saves' copies"] = _saves_copies(layout)
    for name, size in footprint_of(layout.engine.name).in_host_memory(layout).items():
        parts[name] = ranks * size
    if layout.reward_workers:
        parts["reward workers' limit"] = ranks * layout.reward_workers * layout.reward_worker_bytes
    return parts


def _saves_copies(layout: Layout) -> int:
    """Bytes that a save behind the training copies to host memory, on the node that copies most.

    The first data rank writes the weights. Optimizer state is copied from the device, each piece by the rank that
    writes it; what waits in host memory is written from there. Ranks count through tensor, data and pipeline ranks.
    """
    of_node = [0] * layout.cluster.nodes
    for role in layout.sizes:
        cut = layout.of(role)
        for stage in range(cut.pipeline):
            parts = resident(cut, stage, critic=role == "critic")
            weights, state = (parts[role + kind] for kind in _SAVED)
            for data in range(cut.data):
                is_writer = data == 0 or cut.distributed_optimizer
                size = (weights if data == 0 else 0) + (state if is_writer and not cut.offloads else 0)
                first = (stage * cut.data + data) * cut.tensor
                for rank in range(first, first + cut.tensor):
                    of_node[rank // cut.cluster.gpus_per_node] += size
    return max(of_node)


def _reference(layout: Layout) -> int:
    """Bytes of the frozen policy on a rank of the largest stage."""
    counts = [rank_parameters(layout.shape, layout.tensor, layout.pipeline, stage) for stage in range(layout.pipeline)]
    return max(counts) * layout.param_bytes


def _phases(layout: Layout, stages: Mapping[str, int], capacity: int) -> tuple[list[Phase], Cache]:
    reference = (
        {"reference weights": _reference(layout)} if layout.cluster.gpu.is_cpu and layout.keeps_reference else {}
    )
    *_, last_built = layout.sizes
    making, made = (held(layout, stages, updating=roles, stepped=False) | reference for roles in ((last_built,), ()))
    still = held(layout, stages, updating=()) | reference
    engine = footprint_of(layout.engine.name)
    weights, work = engine_weights(layout), engine.workspace(layout)
    cache = engine.cache(
        layout, capacity - sum(made.values()) - weights, capacity - sum(still.values()) - weights - work
    )
    kept = engine.between_rollouts(layout, weights, cache)
    position = _BATCH if layout.critic is None else _BATCH + _CRITIC_COLUMNS
    batch = {"rollout batch": -(-layout.samples // layout.data) * layout.max_tokens * position}
    if layout.critic_cut is not None:
        critics = layout.of("critic")
        samples = -(-critics.samples // critics.data)
        batch["critic's batch"] = samples * critics.max_tokens * (_TENSORS * 2 + _CRITIC_COLUMNS)
    refit = engine.before_refit(layout, weights, cache) | refit_buffers(layout)
    # The distributed optimizer moves the weights into one buffer, and both copies exist for a moment.
    moving = {"weights on their way": making[f"{last_built} weights"]} if layout.distributed_optimizer else {}
    forward = max(
        forward_activations(layout.of(role), sizes.forward_micro, stages[role], critic=role == "critic")
        for role, sizes in layout.sizes.items()
    )
    phases = [
        max(Phase("start", making | moving), Phase("start", made | refit), key=lambda phase: phase.peak),
        Phase(
            "rollout",
            still | {"engine weights": weights, "engine KV cache": cache.bytes, "engine sampling": work},
        ),
        Phase("log-probabilities", still | kept | batch | {"activations": forward}),
        *(
            Phase(
                f"{role} update",
                held(layout, stages, updating=(role,))
                | reference
                | kept
                | batch
                | {"activations": update_activations(layout.of(role), sizes, stages[role], critic=role == "critic")},
            )
            for role, sizes in reversed(layout.sizes.items())
        ),
        Phase("refit", still | refit),
    ]
    return phases, cache


def refit_buffers(layout: Layout) -> dict[str, int]:
    """Bytes of a refit by name: gathered shards and the tensors made of them, a bucket each, and the engine's own."""
    shape = layout.shape
    bucket = max(layout.bucket_bytes, largest_tensor(shape) * layout.param_bytes)
    whole = rank_parameters(shape) * layout.param_bytes
    bucket = min(bucket, whole)
    if layout.tensor == layout.pipeline == 1:
        # Views of the parameters; only query, key and value, which lie interleaved, are copied.
        interleaved = qkv_width(shape) * shape.hidden_size * shape.num_layers * layout.param_bytes
        copies = min(bucket, interleaved)
    else:
        copies = 2 * bucket
    parts = {"refit buckets": copies + footprint_of(layout.engine.name).refit_buckets * bucket}
    if layout.verifies_refit and not layout.cluster.gpu.is_cpu:
        parts["digests"] = _DIGEST_WORK
    return parts
