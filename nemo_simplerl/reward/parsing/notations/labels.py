r"""Left sides of equations that only name what is right of them: f^{-1}(3), (f \circ g)(1), dy/dx, P(A or B)."""

import re

from nemo_simplerl.reward.parsing.brackets import Separators, Tokens, closing_index, is_enclosed, split_top_level
from nemo_simplerl.reward.parsing.lexicon import phrases_of, words_of
from nemo_simplerl.reward.parsing.tree import Call, Node, Symbol

_SURE_FUNCTIONS = frozenset("fghFGH")
_VARIABLES = frozenset("abcijklmntxyz")  # a letter before a bracket multiplies it, unless letters alone are inside
_FUNCTION_COMMANDS = frozenset({"phi", "psi", "sigma", "tau", "zeta", "Phi"})
_SCRIPTS = re.compile(r"(?:_\w+)?(?:'+|\^-1|\^\(\w+\))?")
_OPERATORS = frozenset({"circ", "frac", "+", "-", "cdot", "/", "^", "{", "}", "1", "'"})
_DERIVATIVE = re.compile(r"d(?:\^([23]))?([A-Za-z])/d[A-Za-z](?:\^([23]))?")
_MATRIX_NAME = re.compile(r"[A-Z](?:[A-Z+\-]|_\w|\^(?:-?\d|-?T))*")
# In a label these make it the name of something other than the value: "twice the area is 6".
_CHANGING = re.compile(
    r"\b(?:if|unless|whether|not|no|never|wrong|incorrect|twice|double|triple|thrice|minus|plus|divided|less|more|fewer|squared"
    r"|cubed|except|but|cannot|neither|isn't|reciprocal|multiple|(?:square|cube|negative|opposite|half|inverse) of"
    r"|(?:square|cube) root|times the|at (?:least|most)|false|untrue|errors?|mistakes?|guess|maybe|perhaps|possibly"
    r"|probably|without|other than|instead of|impossible|unlikely)\b"
    r"|^(?:half|quarter|negative|opposite|inverse|log|root)$"
)
_CONCLUDING = words_of("so thus hence therefore then")
_KINDS = phrases_of(
    "point|points|set|vertex|vertices|center|centre|focus|foci|ordered pair|ordered triple|coordinates|vector|interval"
)
_COMPOSITIONS = Separators(("command", "circ"), ("word", "circ"))
_SAYING = words_of("is are equals")


def read_label(tokens: Tokens, of_matrix: bool = False) -> Node | None:
    """The name that a left side is; None where it is arithmetic. `of_matrix`: a matrix is right of it."""
    named = _derivative(tokens) or _application(tokens) or _evaluated(tokens)
    if named is None and of_matrix and _MATRIX_NAME.fullmatch(text := _spelled(tokens)):
        return Symbol(text)
    return named


def names_a_value(words: str) -> bool:
    """Whether words before a value only say what it is: "the maximum value is", not "twice the value is"."""
    return _CHANGING.search(words.lower()) is None


def without_saying(tokens: Tokens) -> Tokens:
    """The tokens without words before them that end in "is": "the maximum value is 17"."""
    first = tokens[0]
    if len(tokens) > 1 and first.kind == "word" and _tells(first.text.lower(), tokens[1:]):
        return tokens[1:]
    says = first.kind == "word" and len(tokens) > 1 and first.text.lower().split()[-1] in _SAYING
    return tokens[1:] if says and names_a_value(first.text) else tokens


def _tells(words: str, rest: Tokens) -> bool:
    """Whether the words only lead to the rest: "so", "the point" before coordinates, "the set" before a set."""
    if words in _CONCLUDING:
        return True
    leads = rest[0].text not in (":", "=") and rest[-1].text in (")", "}", "rangle")
    return leads and words.removeprefix("the ") in _KINDS


def _application(tokens: Tokens) -> Node | None:
    """A function with its argument: f(3), x(t), f'(1), f^{-1}(3), (f + g)(2), P(A or B)."""
    if len(tokens) < 4 or tokens[-1].text != ")":
        return None
    opening = next(
        (at for at, token in enumerate(tokens) if token.text == "(" and closing_index(tokens, at) == len(tokens) - 1), 0
    )
    head, inside = tokens[:opening], tokens[opening + 1 : -1]
    name = _function_name(head) if head and inside else None
    if name is None:
        return None
    if all(token.kind == "letter" or token.text == "," for token in inside):
        return Call(name, tuple(Symbol(token.text) for token in inside if token.kind == "letter"))
    of_sets = any(token.text in ("cap", "cup") for token in inside)
    multiplies = (name in _VARIABLES and not of_sets) or (
        name not in _SURE_FUNCTIONS and any(token.text == name for token in inside)
    )
    return None if multiplies else Call(name, (Symbol(_spelled(inside)),))


def _function_name(head: Tokens) -> str | None:
    """The name of a function: a letter with its subscript, primes and exponent, or functions combined by operators."""
    bare = head
    while bare and bare[-1].text == "'":
        bare = bare[:-1]
    if bare and bare[0].text == "(" and is_enclosed(bare):
        letters = {token.text for token in bare if token.kind == "letter"}
        combined = all(token.kind == "letter" or token.text in _OPERATORS for token in bare[1:-1])
        return _spelled(head) if combined and letters and letters <= _SURE_FUNCTIONS else None
    parts, _ = split_top_level(head, _COMPOSITIONS)
    if len(parts) > 1:
        return _spelled(head) if all(part and _function_name(part) for part in parts) else None
    first = head[0]
    if first.kind not in ("letter", "word") and not (first.kind == "command" and first.text in _FUNCTION_COMMANDS):
        return None
    rest = _spelled(head[1:])
    return first.text + rest if _SCRIPTS.fullmatch(rest) else None


def _derivative(tokens: Tokens) -> Node | None:
    r"""dy/dx and \frac{d^2y}{dx^2} as y' and y''; None for anything else."""
    if tokens[0].text == "frac" and len(tokens) > 2:
        end = closing_index(tokens, 1) if tokens[1].text == "{" else 1
        text = f"{_spelled(tokens[1 : end + 1])}/{_spelled(tokens[end + 1 :])}"
    else:
        text = _spelled(tokens)
    found = _DERIVATIVE.fullmatch(text.replace("partial", "d"))
    if found is None or found[1] != found[3]:
        return None
    node: Node = Symbol(found[2])
    for _ in range(int(found[1] or 1)):
        node = Call("prime", (node,))
    return node


def _evaluated(tokens: Tokens) -> Node | None:
    r"""The derivative at a point, \frac{dy}{dx}|_{x=1}."""
    at = next((at for at, token in enumerate(tokens) if token.text == "|"), 0)
    if not 0 < at < len(tokens) - 2 or tokens[at + 1].text != "_" or _derivative(tokens[:at]) is None:
        return None
    return Call(_spelled(tokens[:at]), (Symbol(_spelled(tokens[at + 2 :])),))


def _spelled(tokens: Tokens) -> str:
    """The tokens in one spelling: without braces, and with a prime for every way to write one."""
    words = ("'" if token.text == "prime" else token.text for token in tokens if token.text not in ("{", "}"))
    return "".join(words).replace("^'", "'")
