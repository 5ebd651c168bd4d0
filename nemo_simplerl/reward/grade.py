"""The verdict on a response, and the reward it earns."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from nemo_simplerl.reward.comparing.equivalence import compare
from nemo_simplerl.reward.extract import final_answers

if TYPE_CHECKING:  # a reward worker starts without building the whole configuration
    from nemo_simplerl.config.schema import RewardConfig

Verdict = Literal["correct", "incorrect", "no_answer"]

SIMPLERL_REWARDS: dict[Verdict, float] = {"correct": 1.0, "incorrect": -0.5, "no_answer": -1.0}


class Judgement(NamedTuple):
    """A verdict. `parsed` is False where the final answer is no readable mathematics: only its text was compared."""

    verdict: Verdict
    parsed: bool


def judge(gold: str, response: str) -> Judgement:
    r"""Judge the last complete `\boxed{...}` of a response against the gold answer.

    Several boxes joined by commas, "and" or "or", or side by side, are one list; the right answer may be repeated.
    Runs untrusted text through work of bounded size, and never evaluates it as code.
    """
    answers = final_answers(response)
    if not answers:
        return Judgement("no_answer", parsed=True)
    comparison = compare(gold, ", ".join(answers))
    if not comparison.equal and len(answers) > 1 and all(compare(gold, answer).equal for answer in answers):
        return Judgement("correct", parsed=True)  # the same answer several times
    return Judgement("correct" if comparison.equal else "incorrect", comparison.parsed)


def grade_text(gold: str, response: str) -> Verdict:
    """The verdict on a response: correct, incorrect or no_answer."""
    return judge(gold, response).verdict


def reward_of(verdict: Verdict, config: "RewardConfig | None" = None) -> float:
    """The reward of a verdict: the SimpleRL recipe's +1, -0.5 and -1, or the values of `config`."""
    if config is None:
        return SIMPLERL_REWARDS[verdict]
    return {"correct": config.correct, "incorrect": config.incorrect, "no_answer": config.no_answer}[verdict]
