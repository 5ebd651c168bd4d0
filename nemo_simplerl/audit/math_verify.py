"""A worker that grades with math-verify, for a second opinion. It speaks the protocol of `reward.serving.worker`.

It runs hostile text through SymPy, bounded only by the deadline and the memory limit that its pool sets.
"""

import importlib.util
import sys

from nemo_simplerl.python_child import module_command
from nemo_simplerl.reward.grade import Judgement
from nemo_simplerl.reward.serving.worker import serve

MATH_VERIFY_COMMAND = module_command("nemo_simplerl.audit.math_verify")


def math_verify_installed() -> bool:
    """Whether the package math-verify can be imported."""
    return importlib.util.find_spec("math_verify") is not None


def judgement_of(gold: str, answer: str) -> Judgement:
    """The judgement of math-verify on the two answers, each as mathematics between dollar signs."""
    from math_verify import parse, verify

    golds, answers = parse(f"${gold}$"), parse(f"${answer}$")
    return Judgement("correct" if verify(golds, answers) else "incorrect", bool(golds and answers))


if __name__ == "__main__":
    import math_verify  # noqa: F401  (before the first item's time counts)

    serve(judgement_of, int(sys.argv[1]), int(sys.argv[2]))
