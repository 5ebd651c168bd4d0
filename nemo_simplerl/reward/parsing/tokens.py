r"""Splits the normalized text of an answer into tokens."""

import re
from dataclasses import dataclass
from typing import Literal

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.lexicon import (
    CONNECTORS,
    CURRENCY_CODES,
    FUNCTION_ALIASES,
    FUNCTIONS,
    ORDINAL_ENDINGS,
    PLAIN_UNITS,
    SHORT_ANSWERS,
    SHORT_WORDS,
    SPACED_UNITS,
    is_known_word,
    is_word,
    words_of,
)

TokenKind = Literal["number", "letter", "word", "connector", "command", "sign"]


class NotParsed(Exception):
    """The text has no form that this grader reads, or exceeds a bound."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token; `spaced`: white space came before it. A token of kind `word` is one or more words of running text."""

    kind: TokenKind
    text: str
    spaced: bool = False


_FONTS = words_of(
    "mathrm mathbf mathit mathsf mathtt mathnormal boldsymbol bm operatorname underline textbf textit textrm emph"
)
_TEXTS = frozenset(["text", "textnormal", "mbox", "hbox", "textbf", "textit", "textrm", "textsf", "texttt", "emph"])
_TEXT_COMMANDS = ("\\text", "\\mathrm", "\\mbox")
_STYLED = frozenset({"mathbb", "mathcal", "mathfrak", "mathscr"})
_LEXEME = re.compile(
    r"(?P<space>\s+)|(?P<number>[0-9]+(?:\.(?!\.)[0-9]*)?(?:[eE][+-]?[0-9]{1,6}(?![0-9A-Za-z.]))?|\.[0-9]+)"
    r"|\\(?:begin\s*\{(?P<begin>[A-Za-z]+)\*?\}(?:\s*(?:\[[a-z]\]\s*)?\{[lcr| ]*\})?|end\s*\{(?P<end>[A-Za-z]+)\*?\})"
    r"|\\(?P<command>[A-Za-z]+\*?|.)|(?P<letters>[A-Za-z]+)|(?P<sign>.)",
    re.DOTALL,
)
_TEXT_LEXEME = re.compile(r"(?P<space>\s+)|(?P<number>[0-9]+(?:\.[0-9]+)?)|(?P<word>[A-Za-z][A-Za-z'.]*)|(?P<rest>.)")
_CONSTANT_WORDS = {"pi": "pi", "infinity": "infty", "inf": "infty", "oo": "infty", "theta": "theta", "alpha": "alpha"}


def tokenize(text: str) -> tuple[Token, ...]:
    r"""The tokens of normalized text. NotParsed where a `\text{` does not close or a bound is exceeded."""
    if text.isdigit() and text.isascii():
        return (Token("number", text),)
    tokens: list[Token] = []
    _scan(text, tokens, 0)
    if len(tokens) > LIMITS.tokens:
        raise NotParsed("too many tokens")
    return tuple(tokens)


def _scan(text: str, tokens: list[Token], depth: int) -> None:
    if depth > LIMITS.nesting:
        raise NotParsed("fonts nested too deeply")
    at, spaced = 0, False
    while at < len(text):
        found = _LEXEME.match(text, at)
        assert found is not None
        at, kind, value = found.end(), found.lastgroup, found.group(found.lastgroup or 0)
        if kind == "space":
            spaced = True
            continue
        if kind == "command" and (value in _TEXTS or value in _FONTS or value in _STYLED):
            content, at = _argument(text, at)
            _scan_font(value, content, tokens, spaced, depth)
        elif kind in ("begin", "end"):
            tokens.append(Token("command", f"{kind} {value}", spaced))
        elif kind == "letters":
            _scan_letters(value, tokens, spaced, text[at:])
        elif kind == "number":
            tokens.append(Token("number", value, spaced))
        elif kind == "command":
            tokens.append(Token("command", value, spaced))
        else:
            tokens.append(Token("sign", value, spaced))
        spaced = False


def _argument(text: str, at: int) -> tuple[str, int]:
    """The braced content that begins at `at`, white space aside, and the index behind it."""
    while at < len(text) and text[at].isspace():
        at += 1
    if at == len(text):
        return "", at
    if text[at] != "{":
        return text[at], at + 1
    depth = 0
    for end in range(at, len(text)):
        if text[end] == "{" and text[end - 1] != "\\":
            depth += 1
        elif text[end] == "}" and text[end - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[at + 1 : end], end + 1
    raise NotParsed("a brace does not close")


def _scan_font(font: str, content: str, tokens: list[Token], spaced: bool, depth: int) -> None:
    stripped = content.strip()
    if font in _STYLED:
        tokens.append(Token("letter", f"\\{font}{{{stripped}}}", spaced))
    elif font in _TEXTS and not (len(stripped) == 1 or "\\" in stripped or "^" in stripped or "=" in stripped):
        _scan_text(content, tokens, spaced)
    elif stripped.isalpha() and stripped.isascii() and len(stripped) > 1:
        tokens.extend(_upright(stripped, tokens[-1] if tokens else None, content != stripped, spaced))
    elif len(stripped) == 1 and stripped.isalpha() and stripped.isascii() and (content != stripped or font in _TEXTS):
        tokens.append(Token("word", stripped, spaced or content[:1].isspace()))  # \mathrm{~m}, \text{m}
    else:
        first = len(tokens)
        _scan(content, tokens, depth + 1)
        if spaced and len(tokens) > first:
            tokens[first] = Token(tokens[first].kind, tokens[first].text, True)


def _upright(run: str, before: Token | None, padded: bool, spaced: bool) -> list[Token]:
    r"""The tokens of letters in \mathrm: a function, a word or unit, or two symbols that OCR set upright."""
    after_value = padded or (before is not None and (_ends_value(before) or before.text == "/") and is_known_word(run))
    name = FUNCTION_ALIASES.get(run, run)
    if name in FUNCTIONS and not (run in PLAIN_UNITS and after_value):
        return [Token("command", name, spaced)]
    if len(run) == 2 and run.islower() and run not in PLAIN_UNITS | ORDINAL_ENDINGS and not after_value:
        return [Token("letter", run[0], spaced), Token("letter", run[1])]
    return [Token("word", run, spaced)]


def _scan_text(content: str, tokens: list[Token], spaced: bool) -> None:
    r"""Append the tokens of `\text{...}`: words, connectors, numbers and signs."""
    for found in _TEXT_LEXEME.finditer(content):
        kind, value = found.lastgroup, found.group()
        if kind == "space":
            spaced = True
            continue
        if kind == "word":
            _add_word(value, tokens, spaced)
        elif kind == "number":
            tokens.append(Token("number", value, spaced))
        else:
            tokens.append(Token("sign", value, spaced))
        spaced = False


def _add_word(word: str, tokens: list[Token], spaced: bool) -> None:
    bare = word.rstrip(".") if word.count(".") == 1 else word
    if bare.lower() in CONNECTORS:
        tokens.append(Token("connector", bare.lower(), spaced))
    elif tokens and tokens[-1].kind == "word" and spaced:
        tokens[-1] = Token("word", f"{tokens[-1].text} {bare}", tokens[-1].spaced)
    else:
        tokens.append(Token("word", bare, spaced))


def _scan_letters(run: str, tokens: list[Token], spaced: bool, rest: str) -> None:
    """Append the tokens of letters outside fonts: a connector, a function, a word, or one-letter symbols.

    `rest` is the text behind them. In mathematics letters are symbols, whatever they spell.
    """
    name = FUNCTION_ALIASES.get(run, run)
    before = tokens[-1] if tokens else None
    if run.lower() in CONNECTORS:
        tokens.append(Token("connector", run.lower(), spaced))
    elif name in FUNCTIONS:
        tokens.append(Token("command", name, spaced))
    elif run.lower() in _CONSTANT_WORDS and len(run) > 1:
        tokens.append(Token("command", _CONSTANT_WORDS[run.lower()], spaced))
    elif run in CURRENCY_CODES and (before is None or _ends_value(before)):
        tokens.append(Token("command", "currency", spaced))
    elif (
        (run in ORDINAL_ENDINGS and before is not None and _is_ordinal(before, run) and not spaced)
        or (is_word(run) and (is_known_word(run) or not _is_glued(tokens, spaced, rest)))
        or (run in PLAIN_UNITS and _is_plain_unit(run, tokens, spaced, rest))
        or (run.lower() in SHORT_WORDS and _stands_alone(run, tokens, spaced, rest))
    ):
        _add_word(run, tokens, spaced)
    else:
        tokens.append(Token("letter", run[0], spaced))
        tokens.extend(Token("letter", letter) for letter in run[1:])


def _is_ordinal(number: Token, ending: str) -> bool:
    """Whether the ending belongs to the number: 1st and 11th, not 3st."""
    if number.kind != "number" or not number.text.isdigit():
        return False
    teen = number.text[-2:-1] == "1"
    return ending == ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(number.text[-1], "th"))


def _is_glued(tokens: list[Token], spaced: bool, rest: str) -> bool:
    """Whether letters stand right behind a value or before an exponent or subscript: they are symbols then."""
    return rest[:1] in ("^", "_") or (bool(tokens) and not spaced and _ends_value(tokens[-1]))


def _is_plain_unit(run: str, tokens: list[Token], spaced: bool, rest: str) -> bool:
    """Whether the letters of a unit are one: behind a value, and not among the symbols of a product."""
    if not tokens:
        return False
    if tokens[-1].text == "(" and len(tokens) > 1:  # 18 (cm)
        return rest[:1] == ")"
    if not _ends_value(tokens[-1]) or rest[:1] in ("\\", "_", "("):
        return False
    if spaced:
        return True
    raises_symbol = len(tokens) > 2 and tokens[-2].text == "^" and tokens[-3].kind == "letter"  # x^2cm
    return run not in SPACED_UNITS and not raises_symbol


def _stands_alone(run: str, tokens: list[Token], spaced: bool, rest: str) -> bool:
    """Whether a short word is one of a running text: beside words, or between spaces and no signs of arithmetic."""
    before, behind = tokens[-1] if tokens else None, rest.lstrip()
    if before is not None:
        if before.kind == "word" and spaced:
            return True
        if run.lower() in ("am", "pm") and len(tokens) > 1 and tokens[-2].text == ":":  # 4:30pm
            return True
        if before.text == "-" and not spaced and len(tokens) > 1 and tokens[-2].kind == "word":  # twenty-one
            return True
        if before.text == "=":
            return not behind and run.lower() in SHORT_ANSWERS
        if not (spaced and before.kind in ("letter", "number", "connector") or before.text in (",", ";", ":")):
            return False
    elif not behind:
        return run.lower() in SHORT_ANSWERS
    if behind.startswith(_TEXT_COMMANDS):
        return True
    return not behind or behind[0] in ",;:.?!)" or (rest != behind and behind[0].isalnum())


def _ends_value(token: Token) -> bool:
    return token.kind in ("number", "word") or token.text in (")", "}", "]", "%", "circ", "pi")
