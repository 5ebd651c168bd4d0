"""The table of the metrics in metrics.jsonl that the page draws, and how."""

from dataclasses import dataclass
from typing import Literal

Scale = Literal["linear", "share", "log", "count", "fit"]


@dataclass(frozen=True)
class Series:
    """One metric of a panel, by its key in metrics.jsonl.

    `kind`: a noisy metric is drawn faint, with its moving average; a plain one as it is; an evaluation with a mark at
    each point. `color` replaces the colour of its place in the panel where one run is drawn.
    """

    key: str
    label: str
    kind: Literal["noisy", "plain", "evaluation"] = "noisy"
    color: int | None = None


@dataclass(frozen=True)
class Panel:
    """A figure of the page, with a `note` below it. `stacked`: shares of a whole, where one run is drawn."""

    title: str
    unit: str
    series: tuple[Series, ...]
    scale: Scale = "linear"
    stacked: bool = False
    note: str = ""


PANELS = (
    Panel("Reward", "mean of a step's samples", (Series("reward/mean", "training"),)),
    Panel(
        "Response length",
        "tokens",
        (
            Series("rollout/length_mean", "training, mean"),
            Series("rollout/length_p95", "training, 95th percentile"),
        ),
    ),
    Panel(
        "Accuracy",
        "share of answers that are correct",
        (
            Series("reward/correct_share", "training, sampled"),
            Series("eval/accuracy", "evaluation, greedy", "evaluation"),
            Series("eval/sampled_accuracy", "evaluation, sampled", "evaluation"),
        ),
        "share",
    ),
    Panel(
        "Evaluation length", "tokens, mean", (Series("eval/length_mean", "evaluation, greedy", "evaluation"),), "linear"
    ),
    Panel(
        "Verdicts",
        "share of a step's samples",
        (
            Series("reward/correct_share", "correct", color=2),
            Series("reward/incorrect_share", "incorrect", color=1),
            Series("reward/no_answer_share", "no answer", color=6),
        ),
        "share",
        stacked=True,
    ),
    Panel(
        "Truncated",
        "share ended by length",
        (
            Series("rollout/truncated_share", "training"),
            Series("eval/truncated_share", "evaluation, greedy", "evaluation"),
        ),
        "share",
    ),
    Panel(
        "KL to the reference",
        "nats per token",
        (Series("actor/kl_ref", "mean log-ratio"), Series("actor/kl_ref_k3", "k3 estimate")),
    ),
    Panel("KL of a step's updates", "nats per token", (Series("actor/approx_kl", "old to new policy"),), "log"),
    Panel("Entropy", "nats per token", (Series("actor/entropy", "policy"),)),
    Panel(
        "Clipped",
        "share of tokens",
        (Series("actor/clip_fraction", "ratio"), Series("critic/value_clip_fraction", "value")),
    ),
    Panel(
        "Value fit",
        "explained variance",
        (Series("critic/explained_variance", "critic"),),
        "fit",
        note="1 is a perfect critic, 0 one that knows the mean. Below -1 is not shown.",
    ),
    Panel(
        "Equal groups",
        "share of prompts",
        (Series("advantage/equal_groups_share", "all responses earn the same"),),
        "share",
        note="Prompts whose responses are all rewarded alike: without a critic they teach nothing.",
    ),
    Panel(
        "Gradient norm",
        "largest of a step's updates",
        (Series("actor/grad_norm_max", "actor"), Series("critic/grad_norm_max", "critic")),
        "log",
    ),
    Panel(
        "Engine mismatch",
        "log-probability apart by, nats",
        (
            Series("consistency/logprob_diff_mean", "mean", "plain"),
            Series("consistency/logprob_diff_max", "largest", "plain"),
        ),
        "log",
    ),
    Panel(
        "Mismatch gate",
        "share of tokens",
        (
            Series("consistency/share_beyond", "beyond the bound", "plain"),
            Series("consistency/tripped", "gate tripped", "plain"),
        ),
        "share",
        note="Tokens further apart than rollout.consistency.max_difference; 100 % where the gate tripped.",
    ),
    Panel(
        "Skipped updates",
        "updates of a step",
        (
            Series("actor/skipped_updates", "actor", "plain"),
            Series("critic/skipped_updates", "critic", "plain"),
        ),
        "count",
    ),
    Panel("Throughput", "response tokens per second", (Series("time/tokens_per_second", "whole step"),)),
)
