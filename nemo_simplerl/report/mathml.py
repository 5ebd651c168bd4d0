r"""Turns LaTeX in model text into MathML, as trees of lists that the page builds node by node.

The text is untrusted, and so is the output of the converter: only the elements and attributes listed here pass, and
no markup is ever parsed.
"""

import html
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_MAX_CHARS = 300
# Read alike by Python and JavaScript: the page looks for the same fragments. Every repeat is bounded, so that the
# time is linear in the text. A dollar that a digit follows, or a space precedes, closes nothing: `$5 and $6`.
PATTERN = (
    r"\$\$([^$]{1,300}?)\$\$"
    r"|\$(?=[^\s$])([^$\n]{1,300}?)(?<=\S)\$(?!\d)"
    r"|\\\(((?:(?!\\\()[\s\S]){1,300}?)\\\)"
    r"|\\\[((?:(?!\\\[)[\s\S]){1,300}?)\\\]"
    r"|(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]{0,60}\}){0,100}\}){1,200}\})"
)
_FRAGMENT = re.compile(PATTERN)
TAGS = frozenset(
    ("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "ms", "mfrac", "msqrt", "mroot", "mstyle", "mpadded")
    + ("mphantom", "menclose", "merror", "msub", "msup", "msubsup", "munder", "mover", "munderover")
    + ("mmultiscripts", "mprescripts", "mtable", "mtr", "mtd")
)
_ATTRIBUTES = frozenset(
    ("mathvariant", "notation", "stretchy", "fence", "form", "separator", "minsize", "maxsize", "linethickness")
    + ("displaystyle", "scriptlevel", "columnalign", "accent", "accentunder", "movablelimits", "largeop")
    + ("lspace", "rspace", "width", "height", "depth")
)
_VALUE = re.compile(r"[\w .%+-]{1,40}")

Tree = list[Any]  # [tag, {attribute: value}, child or text, ...]


def fragments(texts: Iterable[str]) -> list[str]:
    """The LaTeX between delimiters, and the boxes outside them, most frequent first."""
    found: Counter[str] = Counter()
    for text in texts:
        for match in _FRAGMENT.finditer(text):
            found[next(filter(None, match.groups()))] += 1
    return [fragment for fragment, _ in found.most_common()]


def is_available() -> bool:
    """Whether latex2mathml is installed."""
    try:
        import latex2mathml.converter  # noqa: F401
    except ImportError:
        return False
    return True


def tree_of(latex: str) -> Tree | None:
    """The MathML of a formula; None where the converter cannot read it: the page then shows the source."""
    from latex2mathml.converter import convert_to_element

    if len(latex) > _MAX_CHARS:
        return None
    try:
        return allowed_tree(convert_to_element(latex))
    # Whatever a response makes the converter raise (its own errors, IndexError, RecursionError, ...), it shows as text.
    except Exception:
        return None


def allowed_tree(element: "Element") -> Tree:
    """The tree of an element, with listed elements and attributes only; others become a row of their content."""
    tag = element.tag if element.tag in TAGS else "mrow"
    attributes = {
        name: value for name, value in element.attrib.items() if name in _ATTRIBUTES and _VALUE.fullmatch(value)
    }
    # The converter leaves operators as character references.
    text = [html.unescape(element.text)] if element.text else []
    return [tag, attributes, *text, *(allowed_tree(child) for child in element)]
