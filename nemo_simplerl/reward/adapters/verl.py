"""`compute_score` of verl: `custom_reward_function.path=pkg://nemo_simplerl.reward.adapters.verl`."""

from typing import Any

from nemo_simplerl.reward.adapters.scoring import Values, grade, values_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    values: Values = "recipe",
    num_workers: int = 2,
    timeout_s: float = 10.0,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """What verl's reward managers take: the reward as `score`, and numbers that verl averages beside it.

    Of verl's own arguments the response and the gold answer count. The others, down to `timeout_s`, are set under
    `custom_reward_function.reward_kwargs`. Raises ValueError for a gold answer that cannot be used.
    """
    paid = values_of(values)
    (found,) = grade([ground_truth], [solution_str], num_workers=num_workers, timeout_s=timeout_s)
    return {
        "score": paid[found.verdict],
        "acc": float(found.verdict == "correct"),
        "no_answer": float(found.verdict == "no_answer"),
        "timeout_or_crash": float(found.status in ("timeout", "crash")),
    }
