"""What `plan` asks of a rollout engine, and where it finds the answers. Bytes are those of one GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from nemo_simplerl.config.schema import RolloutConfig
from nemo_simplerl.plan.layout import EngineSettings, Layout
from nemo_simplerl.plan.shapes import head_dim, rank_parameters


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The KV cache of one engine."""

    bytes_per_token: int  # on each GPU of the engine
    bytes: int  # on each GPU of the engine
    tokens: int  # that it holds
    sequences: int  # of the longest kind that run at once


class Footprint(Protocol):
    """The memory of one rollout engine, and the settings that change it.

    Weights are common to all engines (`engine_weights`): an engine spans `settings.tensor` ranks and follows neither
    the trainer's tensor nor its pipeline size.
    """

    keys: tuple[str, ...]  # of the configuration that `settings` reads, dotted
    process_bytes: int  # of the engine's own process beside the trainer's: context, graphs, forward pass; 0 where none
    refit_buckets: int  # buckets of weights that a refit holds beside those of the trainer

    def settings(self, rollout: RolloutConfig) -> EngineSettings:
        """The engine's part of a layout."""

    def workspace(self, layout: Layout) -> int:
        """Bytes while it samples, beside weights and KV cache; 0 where `process_bytes` has them."""

    def cache(self, layout: Layout, free_at_start: int, free_at_rollout: int) -> Cache:
        """The KV cache of an engine that finds so many bytes free when its weights are there, and when it samples."""

    def between_rollouts(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        """Bytes by name that stay on the GPU while the trainer computes."""

    def before_refit(self, layout: Layout, weights: int, cache: Cache) -> dict[str, int]:
        """Bytes by name that are on the GPU when new weights arrive, in the worst refit of a run."""

    def in_host_memory(self, layout: Layout) -> dict[str, int]:
        """Bytes by name and rank that the engine keeps in host memory."""

    def changes(self, layout: Layout) -> Iterator[tuple[str, Layout]]:
        """Single settings that leave the trainer more memory, as overrides, and the layouts with them."""


def footprint_of(engine: str) -> Footprint:
    """The FOOTPRINT of the module of this folder that is named as the engine. Raises ValueError where there is none."""
    name = f"{__package__}.{engine}"
    if find_spec(name) is None:
        raise ValueError(
            f"rollout.engine={engine} cannot be planned: nothing says what it takes of a GPU. "
            f"Write a Footprint for it in {name.replace('.', '/')}.py."
        )
    found: Footprint = import_module(name).FOOTPRINT
    return found


def is_in_trainer(engine: str) -> bool:
    """Whether an engine works in the trainer's process, not in one of its own."""
    return footprint_of(engine).process_bytes == 0


def engine_weights(layout: Layout) -> int:
    """Bytes of an engine's weights on one of its GPUs."""
    return rank_parameters(layout.shape, layout.engine.tensor) * layout.param_bytes


def cache_bytes_per_token(layout: Layout) -> int:
    """Bytes of one token's keys and values in all layers, on one GPU of an engine."""
    shape = layout.shape
    groups = max(1, shape.num_query_groups // layout.engine.tensor)
    return 2 * shape.num_layers * groups * head_dim(shape) * layout.param_bytes


def wider_sizes(layout: Layout) -> Iterator[int]:
    """Ranks that one engine could span beyond those it does: they divide a node's GPUs, the engines' ranks and the
    key-value groups."""
    node, groups, ranks = layout.cluster.gpus_per_node, layout.shape.num_query_groups, len(layout.places.engine)
    sizes = range(layout.engine.tensor + 1, node + 1)
    return (size for size in sizes if not (groups % size or node % size or ranks % size))


def sequences_at_once(layout: Layout) -> int:
    """Sequences that one engine decodes at once: its batch, or its share of a step where that is smaller.

    A batch that runs to its end holds whole prompts, one at the least, with all samples of each.
    """
    unit = 1 if layout.engine.refills else layout.samples_per_prompt
    per_engine = -(-layout.samples // (layout.num_engines * unit))
    return unit * max(1, min(layout.engine.batch // unit, per_engine))
