"""A reward worker that scores with a user's function. It speaks the protocol of `reward.serving.worker`.

    python -m nemo_simplerl.reward.functions.worker FILE.py:NAME SOURCE MEMORY_LIMIT_MB [PARENT_PID]

SOURCE is a copy of FILE.py, so that a worker that starts later has the same function. The verdict stays the math
grader's, so that accuracy means the same under every reward. A response on which the function raises counts as no
answer.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nemo_simplerl.reward.functions.call import load_reward
from nemo_simplerl.reward.grade import Verdict, judge
from nemo_simplerl.reward.serving.worker import last_chars, load_and_serve
from nemo_simplerl.user_functions import user_function


class FunctionJudgement(NamedTuple):
    """A verdict, and what the function says beside it. `error` is the traceback where it raised."""

    verdict: Verdict
    parsed: bool
    score: float | None = None
    metrics: dict[str, float] | None = None
    error: str = ""


def judge_with(function: str, source: Path) -> Callable[[str, str, Mapping[str, Any]], FunctionJudgement]:
    """The judge that calls the function FILE.py:NAME, once it is loaded."""
    reward = load_reward(user_function(function), source)

    def judged(gold: str, response: str, facts: Mapping[str, Any]) -> FunctionJudgement:
        verdict, parsed = judge(gold, response)
        try:
            score, metrics = reward(gold, response, facts)
        except (Exception, SystemExit):
            return FunctionJudgement("no_answer", parsed=True, error=last_chars(traceback.format_exc()))
        return FunctionJudgement(verdict, parsed, score, metrics)

    return judged


if __name__ == "__main__":
    memory_limit_mb, parent_pid = (*(int(word) for word in sys.argv[3:]), 0)[:2]
    load_and_serve(lambda: judge_with(sys.argv[1], Path(sys.argv[2])), memory_limit_mb, parent_pid)
