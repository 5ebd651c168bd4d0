"""`reward_func` for the `reward_funcs` of TRL's GRPOTrainer and RLOOTrainer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_simplerl.reward.adapters.scoring import Values, grade, values_of

# Columns that data sets keep the gold answer in, the surest first: a `solution` may be a text with the answer in a box.
GOLD_COLUMNS = ("answer", "ground_truth", "gold", "label", "target", "solution")

Messages = Sequence[Mapping[str, Any]]
RewardFunc = Callable[..., list[float | None]]


def make_reward_func(
    gold: str | None = None, *, values: Values = "recipe", num_workers: int = 2, timeout_s: float = 10.0
) -> RewardFunc:
    """A reward function that takes the gold answer from the column `gold`, or from the first of GOLD_COLUMNS there is.

    A row whose gold is None has no reward from it: TRL then counts its other reward functions alone.
    """
    paid = values_of(values)

    def math_reward(
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        golds = _golds(gold, columns)
        asked = [index for index, value in enumerate(golds) if value is not None]
        grades = grade(
            [golds[index] for index in asked],
            [text_of(completions[index]) for index in asked],
            num_workers=num_workers,
            timeout_s=timeout_s,
        )
        rewards: list[float | None] = [None] * len(golds)
        for index, found in zip(asked, grades, strict=True):
            rewards[index] = paid[found.verdict]
        return rewards

    return math_reward


def text_of(completion: str | Messages) -> str:
    """The text of a completion: of its last message by the assistant where it is a chat."""
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = said[-1].get("content") if said else None
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(str(part.get("text", "")) for part in content)


def _golds(name: str | None, columns: Mapping[str, Any]) -> Sequence[Any]:
    wanted = GOLD_COLUMNS if name is None else (name,)
    for column in wanted:
        if column in columns:
            return list(columns[column])
    there = ", ".join(sorted(columns)) or "none"
    raise ValueError(
        f"the data set has no column {' or '.join(wanted)} with the gold answers; its columns: {there}. "
        'Name it: make_reward_func("COLUMN")'
    )


reward_func = make_reward_func()
