"""A run's layout on a cluster: the numbers that memory and time depend on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nemo_simplerl.config.placement import Places, nodes_of, written
from nemo_simplerl.config.rules.layout import first_over_nodes
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan.gpus import Gpu


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines of a run, each with as many ranks as GPUs."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Batch sizes of one role in samples; packed rows count as the longest sequences that fit into them."""

    micro: int
    forward_micro: int
    update: int  # over all data-parallel ranks
    is_packed: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings of the rollout engine that decide how much memory it takes."""

    name: str  # as rollout.engine has it
    tensor: int  # ranks that one engine spans
    batch: int  # sequences decoded at once
    cache_fraction: float | None  # share of memory that the engine takes as its keys say; None: what the batch needs
    sleeps: bool  # hands its memory to the trainer between rollouts
    refills: bool = True  # begins a sequence as soon as one ends; else a batch runs until its last one ends
    kernels_a_layer: int = 20  # of one decoding step; this many where they are fused
    is_graphed: bool = True  # the host launches a decoding step as one graph; else kernel by kernel
    batch_key: str | None = None  # where larger batches cost memory that is otherwise free: the key that asks for them
    keeps_weights: bool = True  # in host memory, where it sleeps and that is how it wakes
    cpu_cache_bytes: int = 0  # of the KV cache on a CPU, where a key says it

    @property
    def is_possible(self) -> bool:
        """Whether the numbers lie in their ranges."""
        return self.tensor >= 1 and self.batch >= 1 and (self.cache_fraction is None or 0 < self.cache_fraction < 1)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to lay a run out. Counts are per rank unless said otherwise.

    Sizes and ranks are those of the actor's model; `of` has those of another role.
    """

    shape: ModelShape
    critic_shape: ModelShape | None = None  # None: the actor's, or no critic
    cluster: Cluster
    placement: Places | None = None  # None: every role on every rank
    role: str = "actor"
    tensor: int
    pipeline: int
    critic_cut: tuple[int, int] | None = None  # tensor and pipeline sizes of the critic; None: the actor's
    sequence_parallel: bool
    distributed_optimizer: bool
    offloads: bool  # between the updates of a role its optimizer waits in host memory
    saves_behind: bool  # checkpoints are written while training goes on
    recompute: str | None  # full, selective
    param_bytes: int
    fused: bool  # Transformer Engine's kernels; else the local layers
    actor: Sizes
    critic: Sizes | None  # None: advantages are estimated without one
    prompts: int  # a step, over all ranks
    samples_per_prompt: int
    ahead: int = 0  # steps that sampling is ahead of training
    max_rounds: int  # of sampling, of which each but the first is for prompts in place of those left out
    epochs: int
    old_logprobs_share: float  # of the samples, how many the trainer computes the old log-probabilities of
    prompt_tokens: int  # longest
    response_tokens: int  # longest
    keeps_reference: bool
    engine: EngineSettings
    bucket_bytes: int
    verifies_refit: bool
    reward_workers: int  # of one rank's grader; 0: a server grades
    reward_worker_bytes: int

    def shape_of(self, *, critic: bool) -> ModelShape:
        """The shape of a role's model."""
        return self.critic_shape if critic and self.critic_shape is not None else self.shape

    @property
    def sizes(self) -> dict[str, Sizes]:
        """The batch sizes of each model that is trained, by its role."""
        return {"actor": self.actor} if self.critic is None else {"actor": self.actor, "critic": self.critic}

    def resized(self, **changes: Any) -> "Layout":
        """The layout with these changes to the batch sizes of every role."""
        roles: dict[str, Any] = {role: replace(sizes, **changes) for role, sizes in self.sizes.items()}
        return replace(self, **roles)

    @property
    def shapes(self) -> dict[str, ModelShape]:
        """The shape of each model that is trained, by its role."""
        return {role: self.shape_of(critic=role == "critic") for role in self.sizes}

    def of(self, role: str) -> "Layout":
        """The layout with the ranks of `role` and the parallel sizes of its model as its own."""
        if role != "critic" or self.critic_cut is None:
            return replace(self, role=role)
        tensor, pipeline = self.critic_cut
        is_split = self.sequence_parallel and tensor > 1
        return replace(self, role=role, tensor=tensor, pipeline=pipeline, critic_cut=None, sequence_parallel=is_split)

    @property
    def places(self) -> Places:
        """The ranks of each role."""
        everywhere = range(self.cluster.world_size)
        return self.placement or Places(everywhere, everywhere, everywhere)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the run."""
        return (*self.sizes, "engine")

    @property
    def ranks(self) -> range:
        return self.places.of(self.role)

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @property
    def num_engines(self) -> int:
        return len(self.places.engine) // self.engine.tensor

    def stages_on(self, ranks: range) -> list[dict[str, int]]:
        """The pipeline stages that some of these ranks hold, by role: an entry for each combination that one has.

        ranks: those of a role.
        """
        cuts = {role: self.of(role) for role in self.sizes if self.places.of(role) == ranks}
        ranks_a_stage = {role: cut.tensor * cut.data for role, cut in cuts.items()}
        starts = {start for size in ranks_a_stage.values() for start in range(0, len(ranks), size)} or {0}
        return [{role: start // size for role, size in ranks_a_stage.items()} for start in sorted(starts)]

    def is_on_one_node(self, ranks: range) -> bool:
        """Whether these ranks are all on one node."""
        return len(nodes_of(ranks, self.cluster.gpus_per_node)) == 1

    @property
    def torn_tensor_ranks(self) -> range | None:
        """The first ranks that share layers over two nodes; None where each such group is on one."""
        return first_over_nodes(self.ranks, self.tensor, self.cluster.gpus_per_node)

    @property
    def data(self) -> int:
        """Data-parallel size."""
        return self.num_ranks // (self.tensor * self.pipeline)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest sequence, padded as sequence parallelism needs it."""
        tokens = self.prompt_tokens + self.response_tokens
        return -(-tokens // self.tensor) * self.tensor if self.sequence_parallel else tokens

    @property
    def samples(self) -> int:
        """Samples of one step, over all ranks."""
        return self.prompts * self.samples_per_prompt

    def can_cut(self, sizes: Sizes) -> bool:
        """Whether an update falls into equal shares, and those into whole micro-batches."""
        return sizes.update % (self.data * (1 if sizes.is_packed else sizes.micro)) == 0

    def micro_batches(self, sizes: Sizes) -> int:
        """Micro-batches of one update, at most."""
        return -(-sizes.update // (self.data * sizes.micro))


def divides(layout: Layout, tensor: int, pipeline: int) -> bool:
    """Whether these sizes, and the critic's own where it has some, cut models and ranks into equal parts."""
    cut = replace(layout, tensor=tensor, pipeline=pipeline)
    return all(_is_cut(cut.of(role), shape) for role, shape in layout.shapes.items())


def _is_cut(layout: Layout, shape: ModelShape) -> bool:
    widths = (shape.num_attention_heads, shape.num_query_groups, shape.ffn_hidden_size)
    return (
        layout.num_ranks % (layout.tensor * layout.pipeline) == 0
        and shape.num_layers % layout.pipeline == 0
        and not any(width % layout.tensor for width in widths)
    )


def halves(number: int) -> Iterator[int]:
    """number / 2, / 4, ... down to 1."""
    return (number >> shift for shift in range(1, number.bit_length()))


def warnings_of(layout: Layout) -> list[str]:
    """Warnings of settings that run, but not as well as they could."""
    warnings = []
    torn = {(cut.ranks, cut.tensor): cut for cut in (layout.of(role) for role in reversed(layout.sizes))}
    for cut in torn.values():
        if (ranks := cut.torn_tensor_ranks) is not None:
            owner = "critic" if cut.role == "critic" and layout.critic_cut is not None else "actor"
            warnings.append(
                f"{owner}.tensor_model_parallel_size={cut.tensor}: tensor-parallel groups span nodes of "
                f"{cut.cluster.gpus_per_node} GPUs, the {cut.role}'s ranks {written(ranks)} first, so that each layer "
                "waits for the network."
            )
    if layout.tensor > 1 and not layout.sequence_parallel:
        warnings.append(
            "actor.sequence_parallel=false keeps the norms' activations whole on every tensor rank; true splits them."
        )
    if layout.max_rounds > 1:
        warnings.append(
            f"rollout.keep_groups=mixed: figures of the rollout are those of its first round, of {layout.prompts} "
            f"prompts. A step samples others in place of those it leaves out, in up to {layout.max_rounds} rounds: "
            "twice as much where it keeps half of them."
        )
    for name, sizes in layout.sizes.items():
        stages, count = layout.of(name).pipeline, layout.of(name).micro_batches(sizes)
        if count < 2 * stages and stages > 1:
            idle = (stages - 1) / (count + stages - 1)
            warnings.append(
                f"{name}: {count} micro-batches an update over {stages} pipeline stages leave {idle:.0%} of "
                f"the time idle. A smaller {name}.micro_batch_size, or fewer stages, helps."
            )
    return warnings
