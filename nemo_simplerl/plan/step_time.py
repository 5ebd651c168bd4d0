"""How long a step takes, phase by phase: counts of the layout over the speeds of its devices, as ranges.

Counted: matrix products, attention under a causal mask and recomputation; the traffic of tensor parallelism (four
gathers or scatters of the hidden states a layer and pass) and of data parallelism (gradients, weights); what Adam reads
and writes; state that travels to host memory and back; a decoding step's reads and launches. Not counted: grading,
logging, waiting for the slowest rank, and saves that the training waits for.

Legend as in plan/activations.py; s is the mean length of a sequence.
"""

from dataclasses import dataclass

from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan import seconds
from nemo_simplerl.plan.decoding import Decoding, decoding
from nemo_simplerl.plan.engines.base import engine_weights
from nemo_simplerl.plan.layout import Layout, Sizes
from nemo_simplerl.plan.memory import resident
from nemo_simplerl.plan.seconds import NONE, Seconds, at, each, narrowed
from nemo_simplerl.plan.shapes import attention_width, qkv_width, rank_parameters

_LAUNCHES_A_LAYER = 60  # of a forward pass
_ACCUMULATION = 12  # bytes moved for each parameter and micro-batch: a bf16 gradient is added to the float32 one
_DIGEST_READS = 12  # times that the weights' bytes are read or written for a digest of both sides


@dataclass(frozen=True)
class StepTime:
    """Seconds of each phase of a step, by name, and the decoding within the rollout."""

    phases: dict[str, Seconds]
    decoding: Decoding

    @property
    def total(self) -> Seconds:
        return sum(self.phases.values(), NONE)


def step_time(layout: Layout) -> StepTime:
    """The estimate for sequences whose mean length is seconds.LENGTH of the longest."""
    found = decoding(layout)
    passes = _forward(layout, critic=False).times(layout.old_logprobs_share)
    if layout.critic is not None:
        passes += _forward(layout.of("critic"), critic=True)
    if layout.keeps_reference:
        # The weights change places with the reference's, and back.
        moved = 4 * resident(layout, 0, critic=False)["actor weights"]
        passes += _forward(layout, critic=False) + at(moved, 1, seconds.HOST_BUS)
    return StepTime(
        {
            "rollout": found.seconds + _prefill(layout),
            "log-probabilities": passes,
            **{
                f"{role} update": _updates(layout.of(role), sizes, critic=role == "critic")
                for role, sizes in reversed(layout.sizes.items())
            },
            "refit": _refit(layout),
        },
        found,
    )


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
    flops = layout.samples * shape.num_layers * layer_flops(shape, length) / layout.cluster.world_size
    found = at(flops * forwards / width, speeds.flops, seconds.LAYERS)
    if critic:
        return found
    predicted = layout.samples * seconds.LENGTH * layout.response_tokens
    # The last stage's ranks compute the output layer; the others wait.
    head = 2 * shape.vocab_size * shape.hidden_size * predicted * layout.pipeline / layout.cluster.world_size
    return found + at(head * in_head, speeds.flops, seconds.HEAD)


def _tensor_traffic(layout: Layout, *, critic: bool) -> Seconds:
    """What tensor ranks send in one pass forward: four gathers or scatters of the hidden states in every layer."""
    shape, tensor = layout.shape_of(critic=critic), layout.tensor
    tokens = layout.samples / layout.data * mean_tokens(layout)
    size = 4 * (tensor - 1) / tensor * tokens * shape.hidden_size * layout.param_bytes
    return _sent(layout, size * shape.num_layers / layout.pipeline, in_node=layout.cluster.gpus_per_node % tensor == 0)


def _gradients_and_adam(layout: Layout, *, critic: bool, micro_batches: int) -> Seconds:
    """What ends an update: gradients are summed and spread over data ranks, weights stepped and gathered."""
    role = "critic" if critic else "actor"
    parts, memory = resident(layout, 0, critic=critic), layout.cluster.gpu.speeds.memory
    weights, gradients, state = (parts[f"{role} {kind}"] for kind in ("weights", "gradients", "optimizer"))
    if layout.distributed_optimizer:
        sent = (gradients + weights) * (layout.data - 1) / layout.data
    else:
        sent = 2 * gradients * (layout.data - 1) / layout.data
    traffic = _sent(layout, sent, in_node=layout.cluster.nodes == 1)
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
    flops = layout.prompts * shape.num_layers * layer_flops(shape, length) / layout.cluster.world_size
    return at(flops, layout.cluster.gpu.speeds.flops, seconds.DECODING)


def _refit(layout: Layout) -> Seconds:
    """All weights of the actor gathered, handed to each engine and, where they are verified, digested on both sides."""
    whole = rank_parameters(layout.shape) * layout.param_bytes
    ranks = layout.tensor * layout.pipeline
    gathered = _sent(layout, whole * (ranks - 1) / ranks, in_node=layout.cluster.gpus_per_node % ranks == 0)
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
