"""Which metrics of metrics.jsonl the page draws, and how: data alone."""

from dataclasses import dataclass
from typing import Literal

Scale = Literal["linear", "share", "log", "count", "fit"]


@dataclass(frozen=True)
class Series:
    """`kind`: a noisy metric of every step is drawn faint with its smoothed course; a plain one as it is; an
    evaluation with a mark for each. `color`: where one run is drawn, instead of its place in the panel."""

    key: str
    label: str
    kind: Literal["noisy", "plain", "evaluation"] = "noisy"
    color: int | None = None


@dataclass(frozen=True)
class Panel:
    """`note` stands under the figure. A `stacked` panel shows shares of one whole where one run is drawn."""

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
        (Series("policy/kl_ref", "mean log-ratio"), Series("policy/kl_ref_k3", "k3 estimate")),
    ),
    Panel("KL of a step's updates", "nats per token", (Series("policy/approx_kl", "old to new policy"),), "log"),
    Panel("Entropy", "nats per token", (Series("policy/entropy", "policy"),)),
    Panel(
        "Clipped",
        "share of tokens",
        (Series("policy/clip_fraction", "ratio"), Series("critic/value_clip_fraction", "value")),
    ),
    Panel(
        "Value fit",
        "explained variance",
        (Series("critic/explained_variance", "critic"),),
        "fit",
        note="1 is a perfect critic, 0 one that knows the mean. Below -1 is not shown.",
    ),
    Panel(
        "Gradient norm",
        "largest of a step's updates",
        (Series("policy/grad_norm_max", "actor"), Series("critic/grad_norm_max", "critic")),
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
            Series("policy/skipped_updates", "actor", "plain"),
            Series("critic/skipped_updates", "critic", "plain"),
        ),
        "count",
    ),
    Panel("Throughput", "response tokens per second", (Series("time/tokens_per_second", "whole step"),)),
)
