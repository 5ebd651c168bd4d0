r"""Classes of integers: `N \pmod 9`."""

from nemo_simplerl.reward.comparing.exact import Undefined, exact
from nemo_simplerl.reward.parsing.tree import Modular


def congruent(gold: Modular, answer: Modular) -> bool:
    """Whether two integers are of one class of the gold answer's modulus."""
    try:
        one, two, modulus = exact(gold.body), exact(answer.body), exact(gold.modulus)
    except Undefined:
        return False
    if one is None or two is None or not modulus:
        return False
    return one.denominator == two.denominator == modulus.denominator == 1 and (one - two) % modulus == 0


def is_least_residue(node: Modular) -> bool:
    r"""Whether the class is written by the number that a remainder is: 4 \pmod 9, not 13 \pmod 9 and not N \pmod 9."""
    try:
        body, modulus = exact(node.body), exact(node.modulus)
    except Undefined:
        return False
    return body is not None and modulus is not None and body.denominator == 1 and 0 <= body < modulus
