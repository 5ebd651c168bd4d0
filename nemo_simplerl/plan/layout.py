"""A run's layout on a cluster: the numbers that memory and time depend on, and the rules that only a plan can check."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemo_simplerl.config.load import Examined
from nemo_simplerl.config.schema import ActorConfig, Config, CriticConfig, RolloutConfig
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan.gpus import Gpu

_BYTES = {"bf16": 2, "fp32": 4}
# Read below, each a positive integer.
_COUNTS = (
    "actor.tensor_model_parallel_size",
    "actor.pipeline_model_parallel_size",
    "actor.context_parallel_size",
    "actor.micro_batch_size",
    "actor.forward_micro_batch_size",
    "actor.global_batch_size",
    "critic.micro_batch_size",
    "critic.forward_micro_batch_size",
    "critic.global_batch_size",
    "rollout.n_samples_per_prompt",
    "rollout.max_prompt_tokens",
    "rollout.max_response_tokens",
    "rollout.max_batch_size",
    "rollout.refit_bucket_mb",
    "rollout.trtllm.tensor_parallel_size",
    "rollout.trtllm.max_batch_size",
    "data.rollout_batch_size",
    "algo.ppo_epochs",
    "reward.num_workers",
    "reward.memory_limit_mb",
)
_OTHERS = (
    "model.precision",
    *(f"{role}.{name}micro_batch_tokens" for role in ("actor", "critic") for name in ("", "forward_")),
    "actor.sequence_parallel",
    "actor.use_distributed_optimizer",
    "actor.offload_adam_states",
    "actor.recompute_granularity",
    "rollout.engine",
    "rollout.verify_refit",
    "rollout.trtllm.free_gpu_memory_fraction",
    "rollout.trtllm.sleep",
    "algo.kl_coef",
    "reward.url",
)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    nodes: int
    gpus_per_node: int
    gpu: Gpu

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Batch sizes of one role, in samples: of packed rows, the longest sequences that they hold."""

    micro: int
    forward_micro: int
    update: int  # over all data-parallel ranks
    is_packed: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to lay a run out. Counts are per rank unless said otherwise."""

    shape: ModelShape
    cluster: Cluster
    tensor: int
    pipeline: int
    sequence_parallel: bool
    distributed_optimizer: bool
    offloads: bool  # between the updates of a role its optimizer waits in host memory
    recompute: str | None  # full, selective
    param_bytes: int
    fused: bool  # Transformer Engine's kernels; else the local layers
    actor: Sizes
    critic: Sizes
    prompts: int  # a step, over all ranks
    samples_per_prompt: int
    epochs: int
    prompt_tokens: int  # longest
    response_tokens: int  # longest
    keeps_reference: bool
    engine: str
    engine_tensor: int  # ranks an engine spans
    engine_batch: int  # sequences decoded at once
    cache_fraction: float
    engine_sleeps: bool
    bucket_bytes: int
    verifies_refit: bool
    reward_workers: int  # of one rank's grader; 0: a server grades
    reward_worker_bytes: int

    @property
    def data(self) -> int:
        return self.cluster.world_size // (self.tensor * self.pipeline)

    @property
    def max_tokens(self) -> int:
        """Of one sequence, padded as sequence parallelism needs it."""
        tokens = self.prompt_tokens + self.response_tokens
        return -(-tokens // self.tensor) * self.tensor if self.sequence_parallel else tokens

    @property
    def samples(self) -> int:
        """Of one step, over all ranks."""
        return self.prompts * self.samples_per_prompt

    def can_cut(self, sizes: Sizes) -> bool:
        """Whether an update falls into equal shares, and those into whole micro-batches."""
        return sizes.update % (self.data * (1 if sizes.is_packed else sizes.micro)) == 0

    def micro_batches(self, sizes: Sizes) -> int:
        """Of one update, at most."""
        return -(-sizes.update // (self.data * sizes.micro))


def layout_of(found: Examined, cluster: Cluster) -> Layout | None:
    """The layout that a configuration asks for; None where it is not known or cannot be cut that way."""
    layout = wished_layout(found, cluster)
    if layout is None or not divides(layout.shape, cluster, layout.tensor, layout.pipeline):
        return None
    if not all(layout.can_cut(sizes) for sizes in (layout.actor, layout.critic)):
        return None
    return layout


def wished_layout(found: Examined, cluster: Cluster) -> Layout | None:
    """The same, even where its sizes divide nothing: others may be tried in their place."""
    config, shape = found.config, found.shape
    if shape is None or any(_is_reported(key, found.reported) for key in (*_COUNTS, *_OTHERS)):
        return None
    counts = [_value(config, key) for key in _COUNTS]
    if min(counts) < 1 or not 0 < config.rollout.trtllm.free_gpu_memory_fraction < 1:
        return None
    return None if config.actor.context_parallel_size != 1 else _layout(config, shape, cluster)


def divides(shape: ModelShape, cluster: Cluster, tensor: int, pipeline: int) -> bool:
    """Whether the sizes cut the model and the ranks into equal parts."""
    widths = (shape.num_attention_heads, shape.num_query_groups, shape.ffn_hidden_size)
    return (
        not any(width % tensor for width in widths)
        and shape.num_layers % pipeline == 0
        and cluster.world_size % (tensor * pipeline) == 0
    )


def problems_of_the_cluster(found: Examined, cluster: Cluster) -> Iterator[str]:
    """What cannot run, beyond the rules that every run is checked by."""
    if _is_reported("rollout.trtllm.tensor_parallel_size", found.reported):
        return
    rollout = found.config.rollout
    size = rollout.trtllm.tensor_parallel_size
    if rollout.engine == "trtllm" and size > 1 and cluster.nodes > 1 and cluster.gpus_per_node % size:
        yield (
            f"rollout.trtllm.tensor_parallel_size={size} does not divide the {cluster.gpus_per_node} GPUs of a node, "
            "and an engine cannot span nodes. Choose a size that divides them."
        )


def warnings_of(layout: Layout) -> list[str]:
    """What runs, but not as well as it could."""
    warnings = []
    if layout.cluster.nodes > 1 and layout.cluster.gpus_per_node % layout.tensor:
        warnings.append(
            f"actor.tensor_model_parallel_size={layout.tensor} does not divide the {layout.cluster.gpus_per_node} GPUs "
            "of a node, so tensor-parallel groups span nodes and each layer waits for the network."
        )
    if layout.tensor > 1 and not layout.sequence_parallel:
        warnings.append(
            "actor.sequence_parallel=false keeps the norms' activations whole on every tensor rank; true splits them."
        )
    for name, sizes in (("actor", layout.actor), ("critic", layout.critic)):
        count = layout.micro_batches(sizes)
        if count < 2 * layout.pipeline and layout.pipeline > 1:
            idle = (layout.pipeline - 1) / (count + layout.pipeline - 1)
            warnings.append(
                f"{name}: {count} micro-batches an update over {layout.pipeline} pipeline stages leave {idle:.0%} of "
                f"the time idle. A smaller {name}.micro_batch_size, or fewer stages, helps."
            )
    return warnings


def _layout(config: Config, shape: ModelShape, cluster: Cluster) -> Layout:
    actor, critic, rollout = config.actor, config.critic, config.rollout
    has_own_workers = config.reward.url is None
    return Layout(
        shape=shape,
        cluster=cluster,
        tensor=actor.tensor_model_parallel_size,
        pipeline=actor.pipeline_model_parallel_size,
        sequence_parallel=actor.sequence_parallel,
        distributed_optimizer=actor.use_distributed_optimizer,
        offloads=actor.offload_adam_states and not cluster.gpu.is_cpu,
        recompute=actor.recompute_granularity,
        param_bytes=_BYTES[config.model.precision],
        fused=not cluster.gpu.is_cpu
        and config.model.transformer_engine is not False
        and config.model.precision == "bf16",
        actor=_sizes(actor, rollout),
        critic=_sizes(critic, rollout),
        prompts=config.data.rollout_batch_size,
        samples_per_prompt=rollout.n_samples_per_prompt,
        epochs=config.algo.ppo_epochs,
        prompt_tokens=rollout.max_prompt_tokens,
        response_tokens=rollout.max_response_tokens,
        keeps_reference=config.algo.kl_coef > 0,
        engine=rollout.engine,
        engine_tensor=rollout.trtllm.tensor_parallel_size if rollout.engine == "trtllm" else 1,
        engine_batch=rollout.trtllm.max_batch_size if rollout.engine == "trtllm" else rollout.max_batch_size,
        cache_fraction=rollout.trtllm.free_gpu_memory_fraction,
        engine_sleeps=rollout.trtllm.sleep,
        bucket_bytes=rollout.refit_bucket_mb * 2**20,
        verifies_refit=rollout.verify_refit != "off",
        reward_workers=config.reward.num_workers if has_own_workers else 0,
        reward_worker_bytes=config.reward.memory_limit_mb * 2**20,
    )


def _sizes(section: ActorConfig | CriticConfig, rollout: RolloutConfig) -> Sizes:
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    packed, forward_packed = section.micro_batch_tokens, section.forward_micro_batch_tokens
    return Sizes(
        micro=section.micro_batch_size if packed is None else max(packed // longest, 1),
        forward_micro=section.forward_micro_batch_size if forward_packed is None else max(forward_packed // longest, 1),
        update=section.global_batch_size,
        is_packed=packed is not None,
    )


def _is_reported(key: str, reported: frozenset[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in reported)


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
