"""The verdict on a response, and the reward it earns."""

from typing import TYPE_CHECKING, Literal

from nemo_simplerl.reward.equivalence import equivalent
from nemo_simplerl.reward.extract import last_boxed

if TYPE_CHECKING:  # a reward worker starts without building the whole configuration
    from nemo_simplerl.config.schema import RewardConfig

Verdict = Literal["correct", "incorrect", "no_answer"]

SIMPLERL_REWARDS: dict[Verdict, float] = {"correct": 1.0, "incorrect": -0.5, "no_answer": -1.0}


def grade_text(gold: str, response: str) -> Verdict:
    r"""Judge the last complete `\boxed{...}` of a response against the gold answer.

    Runs untrusted text through string work of bounded size, and never evaluates it.
    """
    answer = last_boxed(response)
    if answer is None:
        return "no_answer"
    return "correct" if equivalent(gold, answer) else "incorrect"


def reward_of(verdict: Verdict, config: "RewardConfig | None" = None) -> float:
    """The reward of a verdict: the SimpleRL recipe's +1, -0.5 and -1, or the values of `config`."""
    if config is None:
        return SIMPLERL_REWARDS[verdict]
    return {"correct": config.correct, "incorrect": config.incorrect, "no_answer": config.no_answer}[verdict]
