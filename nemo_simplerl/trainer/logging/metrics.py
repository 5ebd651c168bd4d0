"""The metrics of a step, under flat group/name keys.

Legend: B samples of this data rank, T predicted tokens.
"""

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.algo.advantages import masked_moments
from nemo_simplerl.algo.kl import kl_penalty
from nemo_simplerl.algo.loss import explained_variance
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.completions import Completions
from nemo_simplerl.rollout.spread import SpreadCompletions


def sample_metrics(
    completions: Completions | SpreadCompletions,
    grades: Sequence[Grade],
    scores: Sequence[float],
    terms: Sequence[Mapping[str, float]] = (),
) -> dict[str, float]:
    """Rewards, verdicts and lengths of the whole rollout, which every rank knows, and what a user's function adds.

    terms: of each response's score, by name.
    """
    count = len(completions)
    lengths = sorted(completions.lengths.tolist())
    share = {
        name: sum(grade.verdict == name for grade in grades) / count for name in ("correct", "incorrect", "no_answer")
    }
    metrics = {
        "reward/mean": sum(scores) / count,
        "reward/correct_share": share["correct"],
        "reward/incorrect_share": share["incorrect"],
        "reward/no_answer_share": share["no_answer"],
        "reward/format_rate": 1.0 - share["no_answer"],
        "reward/parse_failed_share": sum(grade.status == "parse_failed" for grade in grades) / count,
        "reward/timeout_share": sum(grade.status == "timeout" for grade in grades) / count,
        "reward/crash_share": sum(grade.status == "crash" for grade in grades) / count,
        "rollout/length_mean": sum(lengths) / count,
        "rollout/length_p95": float(lengths[min(int(0.95 * count), count - 1)]),
        "rollout/length_max": float(lengths[-1]),
        "rollout/truncated_share": (count - int(completions.is_stopped.sum())) / count,
        "rollout/tokens": float(sum(lengths)),
        "rollout/weight_version": float(completions.versions[0]),
    }
    if count > 1 and len(set(scores)) == 1:
        metrics["reward/all_equal"] = 1.0  # where it is not so, the key is not there
    for name in terms[0] if terms else ():
        metrics[f"reward/{name}_mean"] = sum(term[name] for term in terms) / count
    for name, values in function_metrics(grades).items():
        # A name that is taken above stays what it is.
        key = f"reward/{name}" if f"reward/{name}" not in metrics else f"reward/function_{name}"
        metrics[key] = sum(values) / len(values)
    return metrics


def function_metrics(grades: Sequence[Grade]) -> dict[str, list[float]]:
    """The numbers that a user's reward function returned beside its scores, by name, of the samples that have them."""
    found: dict[str, list[float]] = {}
    for grade in grades:
        for name, value in (grade.metrics or {}).items():
            found.setdefault(name, []).append(value)
    return found


def reference_metrics(
    mask_BT: Tensor, old_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, group: dist.ProcessGroup
) -> dict[str, float]:
    """How far the policy is from the reference, over the response tokens of all data ranks. Collective."""
    means = {
        "actor/kl_ref": old_logprobs_BT - ref_logprobs_BT,
        "actor/kl_ref_k3": kl_penalty(old_logprobs_BT, ref_logprobs_BT, "k3"),
    }
    return {name: float(masked_moments(column_BT, mask_BT, group)[0]) for name, column_BT in means.items()}


def estimate_metrics(
    mask_BT: Tensor, values_BT: Tensor, advantages_BT: Tensor, returns_BT: Tensor, group: dist.ProcessGroup
) -> dict[str, float]:
    """A critic's values and what follows from them, over the response tokens of all data ranks. Collective.

    `advantages_BT` are those before whitening.
    """
    metrics: dict[str, float] = {}
    for name, column_BT in (("advantage", advantages_BT), ("return", returns_BT), ("value", values_BT)):
        mean, variance = masked_moments(column_BT, mask_BT, group)
        metrics |= {f"critic/{name}_mean": float(mean), f"critic/{name}_std": float(variance.sqrt())}
    metrics["critic/explained_variance"] = float(explained_variance(values_BT, returns_BT, mask_BT, group))
    return metrics


def advantage_metrics(mask_BT: Tensor, advantages_BT: Tensor, group: dist.ProcessGroup) -> dict[str, float]:
    """Advantages without a critic, before whitening, over the response tokens of all data ranks. Collective."""
    mean, variance = masked_moments(advantages_BT, mask_BT, group)
    return {"advantage/mean": float(mean), "advantage/std": float(variance.sqrt())}


def update_metrics(role: str, updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of one model's updates in a step: means, the largest of `_max` keys and of the gradient norm, the last
    learning rate.

    They are over the updates that were made; `skipped_updates` counts the others. A model that lives on other ranks
    makes none here.
    """
    if not updates:
        return {}
    made = [update for update in updates if not update["skipped"]]
    metrics = {f"{role}/lr": updates[-1]["lr"], f"{role}/skipped_updates": float(len(updates) - len(made))}
    if not made:
        return metrics
    # Settings of the loss may have changed between two updates, where a run goes on in the middle of a step.
    for name in [name for name in made[0] if name not in ("lr", "skipped") and all(name in update for update in made)]:
        values = [update[name] for update in made]
        metrics[f"{role}/{name}"] = max(values) if name.endswith("_max") else sum(values) / len(values)
    metrics[f"{role}/grad_norm_max"] = max(update["grad_norm"] for update in made)
    if "ratio_deviation_max" in updates[0]:
        metrics[f"{role}/first_ratio_deviation"] = updates[0]["ratio_deviation_max"]
    return metrics
