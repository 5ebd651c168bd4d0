"""A worker that grades with math-verify, for a second opinion. Speaks as `reward.worker` does.

It runs hostile text through SymPy, with no bound but the owner's deadline and memory limit.
"""

import importlib.util
import sys

from nemo_simplerl.reward.grade import Judgement
from nemo_simplerl.reward.serving.worker import serve

COMMAND = (sys.executable, "-m", "nemo_simplerl.audit.math_verify")


def is_installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def judge(gold: str, answer: str) -> Judgement:
    """math-verify on the two as mathematics in dollar signs."""
    from math_verify import parse, verify

    golds, answers = parse(f"${gold}$"), parse(f"${answer}$")
    return Judgement("correct" if verify(golds, answers) else "incorrect", bool(golds and answers))


if __name__ == "__main__":
    import math_verify  # noqa: F401  (before the first item's time counts)

    serve(judge, int(sys.argv[1]), int(sys.argv[2]))
