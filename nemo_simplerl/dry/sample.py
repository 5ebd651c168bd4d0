"""How much of a run a dry run executes: samples for the fullest micro-batches, and how deep a model. No torch."""

import math
import random
from dataclasses import dataclass, replace

from nemo_simplerl.plan.layout import Layout

_UPDATES = 2  # the second finds what the first leaves behind
_SHORTEST = 8  # tokens of a response
_SHALLOW = (2, 4)  # layers of each pipeline stage, from which the others are extrapolated


@dataclass(frozen=True)
class Sample:
    """The lengths of the samples of the step that is executed, over all data ranks."""

    prompt_tokens: int
    response_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.prompt_tokens + response for response in self.response_tokens)


def sample_of(layout: Layout) -> tuple[Sample, Layout]:
    """The samples of the step to execute, and `layout` with that step in place of its own.

    An update of a data rank has enough of the longest samples to fill the micro-batches that the pipeline holds at
    once, and some more of which a few are shorter, so that ranks differ. Updates draw from all samples at random.
    """
    sizes = layout.sizes.values()
    whole = math.lcm(*(1 if one.is_packed else one.micro for one in sizes))  # padded rows fall into whole micro-batches
    full = max(layout.pipeline * max(one.micro for one in sizes), *(-(-one.forward_micro // _UPDATES) for one in sizes))
    wanted = -(-(full + max(2, *(one.micro for one in sizes))) // whole) * whole
    a_rank = min(wanted, *(one.update // layout.data for one in sizes))
    update, longest = a_rank * layout.data, layout.response_tokens
    num_short = layout.data * _UPDATES if a_rank == wanted else 0
    rng = random.Random(0)
    short = [rng.randint(min(_SHORTEST, longest), longest) for _ in range(num_short)]
    return Sample(layout.prompt_tokens, (*short, *[longest] * (update * _UPDATES - num_short))), replace(
        layout.resized(update=update),
        prompts=update * _UPDATES,
        samples_per_prompt=1,
        epochs=1,
        verifies_refit=False,
    )


def overrides_of(layout: Layout) -> list[str]:
    """The settings of a layout that `sample_of` gave, and what a dry run must leave out because it knows no values."""
    return [
        f"data.rollout_batch_size={layout.prompts}",
        "rollout.n_samples_per_prompt=1",
        "rollout.keep_groups=all",  # as verdicts are
        "rollout.max_rounds=10",  # which then has no effect
        "reward.function=null",
        "rollout.verify_refit=off",  # digests are values
        "rollout.consistency.policy=warn",
        *(f"{role}.global_batch_size={sizes.update}" for role, sizes in layout.sizes.items()),
        "algo.ppo_epochs=1",
        "algo.ratio_tolerance=null",
        "trainer.max_steps=1",
    ]


def depths(layout: Layout, full: bool) -> list[int]:
    """Layers of the models to execute: two depths that the others follow from in a straight line. The first is enough
    to compare ranks; `full`, the second is the whole model."""
    whole = layout.shape.num_layers
    first, second = (layers * layout.pipeline for layers in _SHALLOW)
    return [whole] if whole <= second else [first, whole if full else second]


def at_depth(layout: Layout, num_layers: int) -> Layout:
    """The layout of models of so many layers."""
    critic = layout.critic_shape
    return replace(
        layout,
        shape=replace(layout.shape, num_layers=num_layers),
        critic_shape=None if critic is None else replace(critic, num_layers=num_layers),
    )


def ranks_of(layout: Layout) -> list[int]:
    """The ranks to execute, the last pipeline stage's first: one of each stage, and of the last, which has the head,
    one more of its tensor and of its data group, so that every group has two."""
    stage_size = layout.tensor * layout.data
    *earlier, last = range(0, layout.pipeline * stage_size, stage_size)
    peers = [last, last + layout.tensor - 1, last + stage_size - layout.tensor]
    return list(dict.fromkeys([*peers, *reversed(earlier)]))
