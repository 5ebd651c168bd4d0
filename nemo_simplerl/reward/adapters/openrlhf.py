"""A reward function for OpenRLHF, which takes the path of this file as its remote reward. It may be loaded by that path
alone."""

from collections.abc import Callable, Sequence
from typing import Any

from nemo_simplerl.reward.adapters.openrlhf_form import answer_of, response_of
from nemo_simplerl.reward.adapters.scoring import Values, grade, values_of


def make_reward_func(
    *, values: Values = "recipe", num_workers: int = 2, timeout_s: float = 10.0
) -> Callable[..., dict[str, Any]]:
    """A reward function that pays what `values` says. A file of one's own with it is given to OpenRLHF instead of this:
    `reward_func = make_reward_func(values="binary")`."""
    paid = values_of(values)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any) -> dict[str, Any]:
        """Rewards as tensors; `scores` are 1 for a right answer and 0 for any other."""
        import torch

        responses = [response_of(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
        found = answer_of(grade(labels, responses, num_workers=num_workers, timeout_s=timeout_s), paid)
        return {
            "rewards": torch.tensor(found["rewards"]),
            "scores": torch.tensor(found["scores"]),
            "extra_logs": {name: torch.tensor(values) for name, values in found["extra_logs"].items()},
        }

    return reward_func


reward_func = make_reward_func()
