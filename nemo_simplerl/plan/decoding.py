"""How long a rollout takes, and what it waits for: reading weights and caches, or the host that launches kernels."""

from dataclasses import dataclass

from nemo_simplerl.plan import seconds
from nemo_simplerl.plan.engines.base import cache_bytes_per_token, engine_weights, sequences_at_once
from nemo_simplerl.plan.layout import Layout
from nemo_simplerl.plan.seconds import NONE, Seconds, at, each
from nemo_simplerl.plan.shapes import vocab_rows

_SAMPLING_BYTES = 80  # moved for each entry of a row's logits: scores, probabilities and their sums in float64


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A rollout as decoding steps, each the same: one token of every sequence that runs."""

    steps: float
    gpu: Seconds  # of one step
    host: Seconds  # of one step, for launching its kernels; NONE where one graph is launched

    @property
    def seconds(self) -> Seconds:
        """Seconds of the whole rollout: the GPU works while the host launches, but for a turn between two steps."""
        return (self.gpu.at_least(self.host) + each(1, seconds.TURN)).times(self.steps)

    @property
    def is_host_bound(self) -> bool:
        """Whether the GPU waits for launches, in the middle of both ranges."""
        return self.host.middle > self.gpu.middle


def decoding(layout: Layout) -> Decoding:
    """The decoding steps of one engine's share of a rollout, in the mean over it."""
    engine, speeds = layout.engine, layout.cluster.gpu.speeds
    steps, rows = _steps_and_rows(layout)
    context = seconds.LENGTH * (layout.prompt_tokens / (1 if engine.refills else layout.samples_per_prompt))
    context += seconds.LENGTH * layout.response_tokens
    weights = engine_weights(layout)
    products = at(weights, speeds.memory, seconds.MEMORY).at_least(
        at(2 * weights / layout.param_bytes * rows, speeds.flops, seconds.DECODING)
    )
    kernels = engine.kernels_a_layer * layout.shape.num_layers
    gpu = (
        products
        + at(rows * context * cache_bytes_per_token(layout), speeds.memory, seconds.CACHE)
        + at(rows * vocab_rows(layout.shape, engine.tensor) * _SAMPLING_BYTES, speeds.memory, seconds.MEMORY)
        + each(kernels, seconds.KERNEL)
    )
    return Decoding(steps=steps, gpu=gpu, host=NONE if engine.is_graphed else each(kernels, seconds.LAUNCH))


def _steps_and_rows(layout: Layout) -> tuple[float, float]:
    """Decoding steps of the engine that is busy longest, and the sequences that run in the mean of them.

    Among many sequences one is cut at the longest length, so a batch runs to it; its rows end on the way.
    """
    longest, batch = layout.response_tokens, sequences_at_once(layout)
    engines = layout.num_engines
    if layout.engine.refills:
        waiting = max(0.0, layout.samples / engines - batch)
        steps = longest + waiting * seconds.LENGTH * longest / batch
        return steps, layout.samples / engines * seconds.LENGTH * longest / steps
    prompts = max(1, batch // layout.samples_per_prompt)
    rounds = -(-layout.prompts // prompts) / engines
    return max(1.0, -(-rounds // 1)) * longest, batch * seconds.LENGTH


def even_batches(layout: Layout) -> list[int]:
    """Batches with which an engine's share of a rollout falls into 1, 2, ... equal parts of whole prompts; largest
    first. Empty for an engine whose batch takes no memory from anybody."""
    if layout.engine.batch_key is None:
        return []
    share = layout.prompts / layout.num_engines  # prompts of an engine
    parts = range(1, max(1, int(share)) + 1)
    return sorted({int(-(-share // count)) * layout.samples_per_prompt for count in parts}, reverse=True)
