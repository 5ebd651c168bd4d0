"""How long a step takes, phase by phase: counts of the layout over the speeds of its devices, as ranges.

Counted: matrix products, attention under a causal mask and recomputation; the traffic of tensor parallelism (four
gathers or scatters of the hidden states a layer and pass) and of data parallelism (gradients, weights); what Adam reads
and writes; state that travels to host memory and back; a decoding step's reads and launches. Not counted: grading,
logging, waiting for the slowest rank, and saves that the training waits for.

Legend as in plan/activations.py; s is the mean length of a sequence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan import seconds
from nemo_simplerl.plan.decoding import Decoding, decoding
from nemo_simplerl.plan.engines.base import engine_weights
from nemo_simplerl.plan.layout import Layout, Sizes
from nemo_simplerl.plan.memory import resident
from nemo_simplerl.plan.seconds import NONE, Seconds, at, each, narrowed
from nemo_simplerl.plan.shapes import attention_width, qkv_width, rank_parameters
from nemo_simplerl.plan.timeline import Span, Task, length, spans

_LAUNCHES_A_LAYER = 60  # of a forward pass
_ACCUMULATION = 12  # bytes moved for each parameter and micro-batch: a bf16 gradient is added to the float32 one
_DIGEST_READS = 12  # times that the weights' bytes are read or written for a digest of both sides


# Columns of float32 or int32 that go from role to role, bytes a response token.
_COLUMNS = (
    ("engine", "actor", "tokens and their log-probabilities", 8),
    ("engine", "critic", "tokens and their log-probabilities", 8),
    ("critic", "actor", "values", 4),
    ("actor", "critic", "returns", 4),
)


@dataclass(frozen=True)
class Traffic:
    """What one role sends to another in a step."""

    source: str
    target: str
    what: str
    bytes_a_token: int | None  # of a response, on its way to each rank of a replica; None for what has no tokens
    size: float  # bytes that arrive in a step, on all ranks together
    seconds: Seconds


@dataclass(frozen=True)
class StepTime:
    """The phases of a step, when each begins and ends, what goes between roles, and the decoding in the rollout."""

    tasks: tuple[Task, ...]
    traffic: tuple[Traffic, ...]
    decoding: Decoding

    @property
    def phases(self) -> dict[str, Seconds]:
        """How long each phase takes."""
        return {task.name: task.seconds for task in self.tasks}

    @cached_property
    def spans(self) -> dict[str, Span]:
        return spans(self.tasks)

    @property
    def total(self) -> Seconds:
        return length(self.spans)


def step_time(layout: Layout) -> StepTime:
    """The estimate for sequences whose mean length is seconds.LENGTH of the longest."""
    found, traffic, places, sizes = decoding(layout), traffic_of(layout), layout.places, layout.sizes
    shares_ranks = places.critic == places.actor
    passes = {"log-probabilities": _passes(layout, with_values=shares_ranks and layout.critic is not None)}
    owners = {"log-probabilities": "actor"}
    if layout.critic is not None and not shares_ranks:
        owners["values"] = "critic"
        passes["values"] = _forward(layout.of("critic"), critic=True)

    def way(source: str, target: str) -> Seconds:
        columns = [one.seconds for one in traffic if (one.source, one.target) == (source, target)]
        return sum(columns, NONE)

    def task(name: str, time: Seconds, after: Mapping[str, Seconds], *roles: str) -> Task:
        return Task(name, roles, tuple(places.of(role) for role in roles), time, after)

    tasks = [task("rollout", found.seconds + _prefill(layout), {}, "engine")]
    for name, role in owners.items():
        # Where sampling is ahead, what is trained on was sampled in the step before.
        tasks.append(task(name, passes[name], {} if layout.ahead else {"rollout": way("engine", role)}, role))
    for role in reversed(sizes):
        time = _updates(layout.of(role), sizes[role], critic=role == "critic")
        tasks.append(task(f"{role} update", time, {name: way(owner, role) for name, owner in owners.items()}, role))
    tasks.append(task("refit", _refit(layout), {"actor update": NONE}, "actor", "engine"))
    return StepTime(tuple(tasks), traffic, found)


def _passes(layout: Layout, *, with_values: bool) -> Seconds:
    """The passes without gradients on the actor's ranks."""
    passes = _forward(layout, critic=False).times(layout.old_logprobs_share)
    if with_values:
        passes += _forward(layout.of("critic"), critic=True)
    if layout.keeps_reference:
        # The weights change places with the reference's, and back.
        moved = 4 * resident(layout, 0, critic=False)["actor weights"]
        passes += _forward(layout, critic=False) + at(moved, 1, seconds.HOST_BUS)
    return passes


def traffic_of(layout: Layout) -> tuple[Traffic, ...]:
    """What a step sends from role to role where they live on different ranks, for responses of the mean length."""
    places, whole = layout.places, rank_parameters(layout.shape) * layout.param_bytes
    tokens = layout.samples * seconds.LENGTH * layout.response_tokens
    have_batches = {"actor"}  # a critic on the actor's ranks and in its layout has the actor's
    if layout.critic_cut is not None or places.critic != places.actor:
        have_batches.add("critic")
    found = []
    for source, target, what, bytes_a_token in _COLUMNS:
        if {source, target} <= set(layout.roles) & {*have_batches, "engine"} and places.of(source) != places.of(target):
            cut = layout.of(target) if target in layout.sizes else layout
            # Each rank of a replica gets the columns of the replica's samples.
            size = bytes_a_token * tokens * cut.tensor * cut.pipeline
            found.append(Traffic(source, target, what, bytes_a_token, size, at(size / cut.num_ranks, 1, seconds.HOSTS)))
    if places.is_engine_apart:
        size = whole * len(places.engine)
        found.append(Traffic("actor", "engine", "weights", None, size, _sent_to_engines(layout, whole)))
    return tuple(found)


def _sent_to_engines(layout: Layout, whole: float) -> Seconds:
    """A broadcast from the actor's first rank, which puts the bytes once on each link."""
    first, engines = layout.places.actor.start, layout.places.engine
    return _sent(layout, whole, in_node=layout.is_on_one_node(range(first, engines[-1] + 1)))


def mean_tokens(layout: Layout) -> float:
    """s: tokens of a sequence in the mean, prompt and response."""
    return seconds.LENGTH * (layout.prompt_tokens + layout.response_tokens)


def layer_flops(shape: ModelShape, length: float) -> float:
    """FLOPs of one layer for one sequence, forward: 2 (h (a + 2 g) d + a d h + 3 h f) s + 2 a d s^2."""
    matrices = sum(k * n for k, n in _products(shape, 1))
    return 2 * matrices * length + 2 * attention_width(shape) * length**2


def _products(shape: ModelShape, tensor: int) -> list[tuple[float, float]]:
    """Sides (K, N) of a layer's weights on one tensor rank."""
    hidden, attention, ffn = shape.hidden_size, attention_width(shape) / tensor, shape.ffn_hidden_size / tensor
    return [(hidden, qkv_width(shape) / tensor), (attention, hidden), (hidden, 2 * ffn), (ffn, hidden)]


def _forward(layout: Layout, *, critic: bool) -> Seconds:
    """One pass of all samples without gradients."""
    return _computing(layout, critic=critic, forwards=1, in_head=1) + _tensor_traffic(layout, critic=critic)


def _updates(layout: Layout, sizes: Sizes, *, critic: bool) -> Seconds:
    """All updates of one role in a step: passes forward and backward, Adam, and its state's way there and back."""
    shape, updates = layout.shape_of(critic=critic), layout.samples / sizes.update
    recomputed = 1 if layout.recompute == "full" else 0
    # The output layer keeps no logits: its backward pass computes each tile again.
    passes = _computing(layout, critic=critic, forwards=3 + recomputed, in_head=4)
    count = _micro_batches(layout, sizes)
    launches = _LAUNCHES_A_LAYER * shape.num_layers / layout.pipeline * (3 + recomputed) * count
    passes = passes.times((count + layout.pipeline - 1) / count).at_least(each(launches * updates, seconds.LAUNCH))
    traffic = _tensor_traffic(layout, critic=critic).times(1 + recomputed)
    # Backward gathers again what forward gathered, for the gradients of the weights: 6 transfers for 4.
    backward = _tensor_traffic(layout, critic=critic).times(1.5)
    traffic += Seconds(backward.low * (1 - seconds.HIDDEN[0]), backward.high * (1 - seconds.HIDDEN[1]))
    each_update = _gradients_and_adam(layout, critic=critic, micro_batches=count)
    role = passes + traffic + each_update.times(updates)
    return role.times(layout.epochs) + _offload(layout, critic=critic)


def _computing(layout: Layout, *, critic: bool, forwards: float, in_head: float) -> Seconds:
    """Products of one rank, for so many forward passes of the layers and of the actor's output layer."""
    shape, speeds, length = layout.shape_of(critic=critic), layout.cluster.gpu.speeds, mean_tokens(layout)
    products = _products(shape, layout.tensor)
    whole = sum(k * n for k, n in products)
    width = whole / sum(k * n / narrowed(min(k, n)) for k, n in products)
    flops = layout.samples * shape.num_layers * layer_flops(shape, length) / layout.num_ranks
    found = at(flops * forwards / width, speeds.flops, seconds.LAYERS)
    if critic:
        return found
    predicted = layout.samples * seconds.LENGTH * layout.response_tokens
    # The last stage's ranks compute the output layer; the others wait.
    head = 2 * shape.vocab_size * shape.hidden_size * predicted * layout.pipeline / layout.num_ranks
    return found + at(head * in_head, speeds.flops, seconds.HEAD)


def _tensor_traffic(layout: Layout, *, critic: bool) -> Seconds:
    """What tensor ranks send in one pass forward: four gathers or scatters of the hidden states in every layer."""
    shape, tensor = layout.shape_of(critic=critic), layout.tensor
    tokens = layout.samples / layout.data * mean_tokens(layout)
    size = 4 * (tensor - 1) / tensor * tokens * shape.hidden_size * layout.param_bytes
    return _sent(layout, size * shape.num_layers / layout.pipeline, in_node=layout.torn_tensor_ranks is None)


def _gradients_and_adam(layout: Layout, *, critic: bool, micro_batches: int) -> Seconds:
    """What ends an update: gradients are summed and spread over data ranks, weights stepped and gathered."""
    role = "critic" if critic else "actor"
    parts, memory = resident(layout, 0, critic=critic), layout.cluster.gpu.speeds.memory
    weights, gradients, state = (parts[f"{role} {kind}"] for kind in ("weights", "gradients", "optimizer"))
    if layout.distributed_optimizer:
        sent = (gradients + weights) * (layout.data - 1) / layout.data
    else:
        sent = 2 * gradients * (layout.data - 1) / layout.data
    traffic = _sent(layout, sent, in_node=layout.is_on_one_node(layout.ranks))
    traffic = Seconds(traffic.low * (1 - seconds.HIDDEN[0]), traffic.high * (1 - seconds.HIDDEN[1]))
    # Adam reads gradients and state and writes state; norm, clipping and zeroing pass over the gradients.
    moved = 3 * state + 4 * gradients + micro_batches * _ACCUMULATION * weights / layout.param_bytes
    return traffic + at(moved, memory, seconds.MEMORY)


def _offload(layout: Layout, *, critic: bool) -> Seconds:
    """A role's optimizer state on its way to the device and back, once a step."""
    if not layout.offloads:
        return NONE
    state = resident(layout, 0, critic=critic)[f"{'critic' if critic else 'actor'} optimizer"]
    return at(2 * state, 1, seconds.HOST_BUS)


def _prefill(layout: Layout) -> Seconds:
    """The pass over prompts, each once."""
    shape, length = layout.shape, seconds.LENGTH * layout.prompt_tokens
    flops = layout.prompts * shape.num_layers * layer_flops(shape, length) / len(layout.places.engine)
    return at(flops, layout.cluster.gpu.speeds.flops, seconds.DECODING)


def _refit(layout: Layout) -> Seconds:
    """All weights of the actor gathered, handed to each engine and, where they are verified, digested on both sides."""
    whole = rank_parameters(layout.shape) * layout.param_bytes
    ranks = layout.tensor * layout.pipeline
    gathered = _sent(layout, whole * (ranks - 1) / ranks, in_node=layout.cluster.gpus_per_node % ranks == 0)
    if layout.places.is_engine_apart:  # one bucket is gathered while another is sent
        gathered = gathered.at_least(_sent_to_engines(layout, whole))
    passes = 4 * whole + (_DIGEST_READS * engine_weights(layout) if layout.verifies_refit else 0)
    return gathered + at(passes, layout.cluster.gpu.speeds.memory, seconds.MEMORY)


def _micro_batches(layout: Layout, sizes: Sizes) -> int:
    """Micro-batches of one update at the mean length."""
    if not sizes.is_packed:
        return layout.micro_batches(sizes)
    tokens = sizes.update / layout.data * mean_tokens(layout)
    return max(1, -(-int(tokens) // (sizes.micro * layout.max_tokens)))


def _sent(layout: Layout, size: float, *, in_node: bool) -> Seconds:
    return at(size, layout.cluster.gpu.speeds.peers, seconds.PEERS) if in_node else at(size, 1, seconds.NETWORK)
