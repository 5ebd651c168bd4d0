r"""Words and conditions beside a value: `only`, `for all real x`, `(k \in \mathbb{Z})`, `where n is an integer`.

What restricts nothing is dropped. A condition that may restrict stays, as a further item of a list.
"""

from nemo_simplerl.reward.parsing.brackets import Separators, Tokens, closing_index, split_top_level
from nemo_simplerl.reward.parsing.lexicon import phrases_of, words_of
from nemo_simplerl.reward.parsing.tokens import Token
from nemo_simplerl.reward.parsing.tree import PI, Listing, Node, Relation, Symbol, contains_node, symbols_of

_ADVERBS = phrases_of(
    "only|exactly|precisely|just|approximately|about|roughly|around|approx|in total|total|altogether|in all"
    "|respectively"
)
_HEADS = words_of("any every all each for where with when if whenever provided given")
_UNIVERSAL = words_of(
    "for all any every each of where with is are be being an a the some and real reals integer integers number "
    "numbers value values complex rational defined on over in"
)
_CONDITIONS = frozenset({"in", "<", ">", "le", "ge", "ne", "notin"})
_MARKS = frozenset({"word", "forall"})
_COMMA = Token("sign", ",")
_COMMAS = Separators(("sign", ","))
_CONDITION_ENDS = Separators(("sign", ","), ("command", ","), ("connector", "and"), ("connector", "or"))
_NATURALS = r"\mathbb{N}"
_NUMBERS = frozenset({_NATURALS, r"\mathbb{Z}", r"\mathbb{Q}", r"\mathbb{R}", r"\mathbb{C}"})


def without_qualifiers(tokens: Tokens) -> Tokens:
    """The tokens without what restricts nothing, and with every other condition behind a comma."""
    if tokens[-1].text != ")" and _MARKS.isdisjoint(
        [token.kind if token.kind == "word" else token.text for token in tokens]
    ):
        return tokens
    tokens = _without_adverbs(tokens)
    return _with_listed_clause(_without_argument(tokens))


def _without_adverbs(tokens: Tokens) -> Tokens:
    while len(tokens) > 1 and tokens[0].kind == "word" and tokens[0].text.lower() in _ADVERBS:
        if tokens[1].text in (":", "="):  # the total is a name here
            break
        tokens = tokens[1:]
    while len(tokens) > 1 and tokens[-1].kind == "word" and tokens[-1].text.lower() in _ADVERBS:
        tokens = tokens[:-1]
    if len(tokens) > 3 and tokens[-1].text == ")" and tokens[-3].text == "(" and tokens[-2].text.lower() in _ADVERBS:
        tokens = tokens[:-3]
    return tokens


def _without_argument(tokens: Tokens) -> Tokens:
    """The tokens without letters behind the words for what is counted: `24 ordered pairs (a, b)`, `9 integers n`."""
    end = len(tokens)
    while end and (tokens[end - 1].kind == "letter" or tokens[end - 1].text in ("(", ")", ",")):
        end -= 1
    words = tokens[end - 1].text.lower().split() if 1 < end < len(tokens) and tokens[end - 1].kind == "word" else []
    if not words or words[0] in _HEADS or words[-1][-1] != "s" or tokens[end - 2].kind != "number":
        return tokens
    return tokens[:end]


def _with_listed_clause(tokens: Tokens) -> Tokens:
    """The tokens with a clause such as `(x > 0)`, `for x > 0` or `for all x` behind a comma, or without it."""
    at = _clause_begin(tokens)
    if not at:
        parts, commas = split_top_level(tokens, _COMMAS)
        said = parts[-1]
        if (
            commas
            and len(said) > 1
            and said[0].kind == "letter"
            and said[-1].kind == "word"
            and _restricts_nothing(said)
        ):
            return tokens[: -len(said) - 1]
        return tokens
    body, clause = tokens[:at], tokens[at:]
    while body and body[-1].text in (",", "\\"):
        body = body[:-1]
    if not body:
        return tokens
    if clause[0].text == "(":
        clause = clause[1:-1]
    if _restricts_nothing(clause):
        return body
    clause = _membership(clause) or (clause[1:] if clause[0].text == "forall" else clause)
    if not clause:
        return tokens
    if clause[0].kind == "word" and set(clause[0].text.lower().split()) <= _UNIVERSAL | _HEADS:
        clause = clause[1:]
    return (*body, _COMMA, *clause) if clause and _is_condition(clause) else tokens


def _membership(clause: Tokens) -> Tokens | None:
    """`for positive integers n` as a membership of n in the natural numbers; None for any other clause."""
    words = {word for token in clause if token.kind == "word" for word in token.text.lower().split()}
    letters = [token for token in clause if token.kind == "letter"]
    natural = {"natural"} & words or ({"positive", "nonnegative"} & words and {"integer", "integers"} & words)
    if len(letters) != 1 or not natural or not words <= _UNIVERSAL | {"positive", "nonnegative", "natural"}:
        return None
    return (letters[0], Token("command", "in"), Token("letter", _NATURALS))


def _clause_begin(tokens: Tokens) -> int:
    """Where the clause at the end of the tokens begins; 0 without one."""
    depth = 0
    for at, token in enumerate(tokens):
        if token.text in ("(", "[", "{"):
            depth += 1
        elif token.text in (")", "]", "}"):
            depth -= 1
        elif at and not depth and _begins_clause(token):
            return at
    opening = next((at for at in range(len(tokens) - 1, 0, -1) if tokens[at].text == "("), 0)
    if not opening or closing_index(tokens, opening) < len(tokens) - 1 or _is_argument(tokens, opening):
        return 0
    inside = tokens[opening + 1 : -1]
    return opening if inside and (_is_condition(inside) or _restricts_nothing(inside)) else 0


def _begins_clause(token: Token) -> bool:
    return token.text == "forall" or (token.kind == "word" and token.text.lower().split()[0] in _HEADS)


def _is_argument(tokens: Tokens, opening: int) -> bool:
    """Whether the bracket holds the argument of the letter before it: P(x > 2)."""
    before = tokens[opening - 1]
    return before.kind == "letter" and (before.text.isupper() or not tokens[opening].spaced)


def _restricts_nothing(clause: Tokens) -> bool:
    """Whether the clause only repeats that its letters are numbers: `for all real x`, `where n is an integer`."""
    words = {word for token in clause if token.kind == "word" for word in token.text.lower().split()}
    said = words & {"all", "any", "every", "each", "integer", "integers", "real", "reals"} or clause[0].text == "forall"
    others = [token for token in clause if token.kind not in ("word", "letter", "connector")]
    return bool(said) and words <= _UNIVERSAL and all(token.text in (",", "forall") for token in others)


def _is_condition(tokens: Tokens) -> bool:
    """Whether every item is an inequality or a membership."""
    if any(token.kind == "word" or token.text == "=" for token in tokens):
        return False
    items, _ = split_top_level(tokens, _CONDITION_ENDS)
    return all(any(token.text in _CONDITIONS for token in item) for item in items if item)


def split_conditions(node: Node) -> tuple[Node, tuple[Relation, ...]]:
    """A list of one answer and of conditions on its symbols, apart; any other node, without conditions."""
    if not isinstance(node, Listing) or node.joiner != "," or _is_condition_node(node.items[0]):
        return node, ()
    end = next((at for at, item in enumerate(node.items) if _is_condition_node(item)), len(node.items))
    conditions = tuple(item for item in node.items[end:] if isinstance(item, Relation) and _is_condition_node(item))
    body = node.items[0] if end == 1 else Listing(node.items[:end], node.joiner)
    about_body = all(symbols_of(condition) & symbols_of(body) for condition in conditions)
    return (body, conditions) if about_body and end + len(conditions) == len(node.items) else (node, ())


def _is_condition_node(node: Node) -> bool:
    return isinstance(node, Relation) and set(node.operators) <= {"in", "<", ">", "<=", ">=", "!="}


def is_membership(condition: Relation, body: Node) -> bool:
    """Whether the condition only says that a symbol is a number, of whichever kind the problem is about.

    That k in k pi is natural is more: it leaves out half of the solutions.
    """
    if condition.operators != ("in",) or not isinstance(condition.sides[1], Symbol):
        return False
    name = condition.sides[1].name
    return name in _NUMBERS and not (name == _NATURALS and contains_node(body, PI))
