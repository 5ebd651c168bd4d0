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
class Room:
    """Memory of the GPUs that the same roles share. Each phase is that of the pipeline stage that needs most in it."""

    roles: tuple[str, ...]
    ranks: range
    capacity: int
    phases: tuple[Phase, ...]

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def headroom(self) -> int:
        """Bytes to spare in the worst phase; below 0 the run does not fit."""
        return self.capacity - self.worst.peak


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a run. Capacity and phases are those of the room that has least to spare."""

    rooms: tuple[Room, ...]  # lowest ranks first; one where all roles share every rank
    cache: Cache
    host: dict[str, int]  # of the node that needs most, by name

    @property
    def tightest(self) -> Room:
        return min(self.rooms, key=lambda room: room.headroom)

    @property
    def capacity(self) -> int:
        return self.tightest.capacity

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.tightest.phases

    @property
    def worst(self) -> Phase:
        return self.tightest.worst

    @property
    def headroom(self) -> int:
        return self.tightest.headroom

    @property
    def fits(self) -> bool:
        return self.headroom >= 0 and self.cache.sequences >= 1


def memory(layout: Layout) -> Memory:
    rooms: list[Room] = []
    caches: list[Cache] = []
    for ranks, roles in layout.places.sharing(layout.roles).items():
        process = footprint_of(layout.engine.name).process_bytes if "engine" in roles else 0
        capacity = layout.cluster.gpu.capacity(process)
        by_stage = []
        for stages in layout.stages_on(ranks):
            cache = _cache(layout, stages, capacity) if "engine" in roles else None
            caches += [] if cache is None else [cache]
            by_stage.append(_phases(layout, stages, cache))
        worst = tuple(max(same, key=lambda phase: phase.peak) for same in zip(*by_stage, strict=True))
        rooms.append(Room(roles=roles, ranks=ranks, capacity=capacity, phases=worst))
    # Engines of different stages' GPUs share the work: the smallest cache is the one to plan with.
    cache = min(caches, key=lambda cache: cache.sequences)
    return Memory(rooms=tuple(rooms), cache=cache, host=host_memory(layout))


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
    """Bytes by name in the host memory of the node that needs most."""
    a_rank = [
        (room, _host_memory_of_a_rank(layout, room, roles))
        for room, roles in layout.places.sharing(layout.roles).items()
    ]
    copied = _saves_copies(layout) if layout.saves_behind else [0] * layout.cluster.nodes
    nodes = []
    for node, of_saves in enumerate(copied):
        size = layout.cluster.gpus_per_node
        parts = {"trainer processes": size * _PROCESS}
        for room, of_rank in a_rank:
            count = len(range(max(room.start, node * size), min(room.stop, (node + 1) * size)))
            for name, each in of_rank.items():
                parts[name] = parts.get(name, 0) + count * each
        parts["saves' copies"] = of_saves
        nodes.append({name: total for name, total in parts.items() if total})
    return max(nodes, key=lambda parts: sum(parts.values()))


def _host_memory_of_a_rank(layout: Layout, ranks: range, roles: Sequence[str]) -> dict[str, int]:
    """Bytes by name that one rank with these roles keeps in host memory beside its process, at most."""
    parts = {}
    if layout.keeps_reference and "actor" in roles:
        parts["reference weights"] = _reference(layout)
    if layout.ahead and "actor" in roles:
        parts["weights of the step before"] = _reference(layout)  # which sampled: the gate compares with them
    if layout.offloads:
        parts["offloaded optimizers"] = max(
            sum(size for name, size in held(layout, stages, updating=roles).items() if name.endswith(" optimizer"))
            for stages in layout.stages_on(ranks)
        )
    if "engine" in roles:
        parts |= footprint_of(layout.engine.name).in_host_memory(layout)
        if layout.reward_workers:
            parts["reward workers' limit"] = layout.reward_workers * layout.reward_worker_bytes
    return parts


def _saves_copies(layout: Layout) -> list[int]:
    """Bytes that a save behind the training copies to host memory, on each node.

    The first data rank of a role writes its weights. Optimizer state is copied from the device, each piece by the rank
    that writes it; what waits in host memory is written from there. Ranks count through tensor, data and pipeline
    ranks.
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
                first = cut.ranks.start + (stage * cut.data + data) * cut.tensor
                for rank in range(first, first + cut.tensor):
                    of_node[rank // cut.cluster.gpus_per_node] += size
    return of_node


def _reference(layout: Layout) -> int:
    """Bytes of another policy's weights on an actor's rank of the largest stage."""
    counts = [rank_parameters(layout.shape, layout.tensor, layout.pipeline, stage) for stage in range(layout.pipeline)]
    return max(counts) * layout.param_bytes


def _always(layout: Layout, stages: Mapping[str, int]) -> dict[str, int]:
    """Bytes by name of what is on a GPU in every phase beside `held`: on CPUs, the reference."""
    is_kept = layout.cluster.gpu.is_cpu and layout.keeps_reference and "actor" in stages
    return {"reference weights": _reference(layout)} if is_kept else {}


def _cache(layout: Layout, stages: Mapping[str, int], capacity: int) -> Cache:
    """The KV cache of an engine on a GPU that holds these stages of models too, or none."""
    engine, weights, always = footprint_of(layout.engine.name), engine_weights(layout), _always(layout, stages)
    made, still = (
        sum((held(layout, stages, updating=(), stepped=is_stepped) | always).values()) for is_stepped in (False, True)
    )
    return engine.cache(layout, capacity - made - weights, capacity - still - weights - engine.workspace(layout))


def _phases(layout: Layout, stages: Mapping[str, int], cache: Cache | None) -> list[Phase]:
    """The phases of a GPU that holds these stages of models, and an engine where there is a cache."""
    engine, weights, always = footprint_of(layout.engine.name), engine_weights(layout), _always(layout, stages)
    built = tuple(stages)[-1:]  # the role that is built last
    making, made = (held(layout, stages, updating=roles, stepped=False) | always for roles in (built, ()))
    still = held(layout, stages, updating=()) | always
    kept = {} if cache is None else engine.between_rollouts(layout, weights, cache)
    refit = {} if cache is None else engine.before_refit(layout, weights, cache)
    refit |= refit_buffers(layout, sends="actor" in stages, receives=cache is not None)
    # The distributed optimizer moves the weights into one buffer, and both copies exist for a moment.
    moving = {"weights on their way": making[f"{built[0]} weights"]} if built and layout.distributed_optimizer else {}
    phases = [max(Phase("start", making | moving), Phase("start", made | refit), key=lambda phase: phase.peak)]
    if cache is not None:
        parts = {"engine weights": weights, "engine KV cache": cache.bytes, "engine sampling": engine.workspace(layout)}
        phases.append(Phase("rollout", still | parts))
    if stages:
        phases += _phases_of_training(layout, stages, still, kept, always)
    if refit:
        phases.append(Phase("refit", still | refit))
    return phases


def _phases_of_training(
    layout: Layout, stages: Mapping[str, int], still: dict[str, int], kept: dict[str, int], always: dict[str, int]
) -> list[Phase]:
    """The passes without gradients, and each role's updates. kept: of the engine."""
    sizes, batch = layout.sizes, _batches(layout, stages)
    forward = max(
        forward_activations(layout.of(role), sizes[role].forward_micro, stage, critic=role == "critic")
        for role, stage in stages.items()
    )
    name = "values" if set(stages) == {"critic"} else "log-probabilities"
    return [
        Phase(name, still | kept | batch | {"activations": forward}),
        *(
            Phase(
                f"{role} update",
                held(layout, stages, updating=(role,))
                | always
                | kept
                | batch
                | {"activations": update_activations(layout.of(role), sizes[role], stage, critic=role == "critic")},
            )
            for role, stage in reversed(list(stages.items()))
        ),
    ]


def _batches(layout: Layout, stages: Mapping[str, int]) -> dict[str, int]:
    """Bytes by name of a rollout as tensors on a GPU with these roles."""
    found = {}
    if "actor" in stages:
        position = _BATCH if layout.critic is None else _BATCH + _CRITIC_COLUMNS
        found["rollout batch"] = -(-layout.samples // layout.data) * layout.max_tokens * position
    if "critic" in stages and ("actor" not in stages or layout.critic_cut is not None):
        critics = layout.of("critic")
        samples = -(-critics.samples // critics.data)
        found["critic's batch"] = samples * critics.max_tokens * (_TENSORS * 2 + _CRITIC_COLUMNS)
    return found


def refit_buffers(layout: Layout, *, sends: bool = True, receives: bool = True) -> dict[str, int]:
    """Bytes of a refit by name: gathered shards and the tensors made of them, a bucket each, and the engine's own.

    sends, receives: whether the actor and an engine live on the GPU. Between GPUs two buckets are on their way at once.
    """
    if not (sends or receives):
        return {}
    shape = layout.shape
    bucket = max(layout.bucket_bytes, largest_tensor(shape) * layout.param_bytes)
    whole = rank_parameters(shape) * layout.param_bytes
    bucket = min(bucket, whole)
    size = 0 if sends and receives else 2 * bucket
    if sends and layout.tensor == layout.pipeline == 1:
        # Views of the parameters; only query, key and value, which lie interleaved, are copied.
        interleaved = qkv_width(shape) * shape.hidden_size * shape.num_layers * layout.param_bytes
        size += min(bucket, interleaved)
    elif sends:
        size += 2 * bucket
    if receives:
        size += footprint_of(layout.engine.name).refit_buckets * bucket
    parts = {"refit buckets": size}
    if layout.verifies_refit and not layout.cluster.gpu.is_cpu:
        parts["digests"] = _DIGEST_WORK
    return parts
