r"""Environments that only typeset: lines of `aligned`, systems of `cases`, gaps such as `\\[4pt]` between rows."""

import re

_GAP = re.compile(
    r"(?<!\\)\\\\\s*(?:\*\s*)?\[\s*-?[0-9]*\.?[0-9]+\s*(?:pt|em|ex|mm|cm|in|mu|pc|bp|sp|dd|\\baselineskip|\\jot)\s*\]"
)
_LINES = (
    r"(?:aligned|align|alignedat|gathered|gather|split|equation|multline|eqnarray|displaymath|math|center|flalign"
    r"|alignat)\*?"
)
_LINE_MARK = re.compile(rf"\\(?:begin|end)\s*\{{{_LINES}\}}(?:\s*\[[a-z]\])?")
_CONTINUED = re.compile(r"\\\\\s*&?\s*(?==)")
_SYSTEM = re.compile(
    r"(?:\\left\s*)?\\(?:\{|lbrace)\s*\\begin\s*\{(array|aligned|matrix|gathered|split)\}(?:\s*\{[lcr| ]*\})?"
    r"(.*?)\\end\s*\{\1\}\s*\\right\s*\.",
    re.DOTALL,
)
_CASES = re.compile(
    r"(?:\\left\s*)?(?:\\(?:\{|lbrace)\s*)?\\begin\s*\{([dr]?cases)\*?\}(.*?)\\end\s*\{\1\*?\}(?:\s*\\right\s*\.)?",
    re.DOTALL,
)
_EQUALS = re.compile(r"&?\s*=\s*&?")
_INNERMOST_ROW_MARK = re.compile(r"&|\\begin")


def without_line_environments(text: str) -> str:
    r"""The text with plain line breaks for lines and systems of equations. Definitions by cases stay `cases`.

    A line that begins with an equals sign goes on with the line before it.
    """
    if r"\\" in text:
        text = _GAP.sub(r"\\\\ ", text)
    if r"\begin" not in text and r"\right" not in text:
        return text
    text = _CASES.sub(_system, _SYSTEM.sub(_system, text))
    lines = _LINE_MARK.sub(" ", text)
    if lines != text and r"\begin" not in lines:
        lines = _CONTINUED.sub(" ", _EQUALS.sub("=", lines)).replace("&", " ")
    return lines


def _system(found: "re.Match[str]") -> str:
    content = _EQUALS.sub("=", found[2])
    if _INNERMOST_ROW_MARK.search(content):
        return rf"\begin{{cases}}{content}\end{{cases}}"
    return f" {content} "
