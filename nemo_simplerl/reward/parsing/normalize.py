r"""Brings the many ways of typesetting the same text to one spelling. Works on strings, in linear time."""

import re

from nemo_simplerl.reward.limits import LIMITS
from nemo_simplerl.reward.parsing.notations.characters import plain_characters
from nemo_simplerl.reward.parsing.notations.environments import without_line_environments

MAX_ANSWER_CHARS = LIMITS.chars  # a longer answer is left as it stands

_INVISIBLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u2060-\u2064\ufe0f\ufeff]")
_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "∙": r"\cdot ", "÷": r"\div ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "√": r"\sqrt ",
    "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "∠": r"\angle ",
    "△": r"\triangle ", "…": r"\ldots ", "⋯": r"\ldots ", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"',
    "，": ",", "、": ",", "；": ";", "：": ":", "（": "(", "）": ")", "【": "[", "】": "]", "｛": r"\{", "｝": r"\}",
    "＝": "=", "＞": ">", "＜": "<", "＋": "+", "－": "-", "．": ".", "。": ".", "％": "%", "｜": "|", "？": "?",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "∀": r"\forall ", "∃": r"\exists ", "→": r"\to ", "⇒": r"\Rightarrow ", "∑": r"\sum ", "∫": r"\int ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "⅛": r"\frac{1}{8}", "⁄": "/", "∕": "/", "≦": r"\le ", "≧": r"\ge ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]",
    "℃": r"^\circ C", "℉": r"^\circ F", "∉": r"\notin ", "⊆": r"\subseteq ", "⊂": r"\subset ", "⟹": r"\Rightarrow ",
    "⇔": r"\Leftrightarrow ", "∧": r"\wedge ", "∨": r"\vee ", "⟨": r"\langle ", "⟩": r"\rangle ", "∥": r"\parallel ",
    "⊥": r"\perp ", "∂": r"\partial ", "≅": r"\cong ", "∼": r"\sim ", "″": "''", "¢": r"\centsign ", "µ": r"\mu ",
    "∴": r"\therefore ", "「": '"', "」": '"', "［": "[", "］": "]", "•": r"\cdot ", "₹": r"\currency ",
    "€": r"\currency ", "£": r"\currency ", "¥": r"\currency ", "\u00a0": " ",
}  # fmt: skip
_GREEK_LETTERS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_GREEK = zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True)
_SYMBOLS = str.maketrans(_UNICODE | {letter: f"\\{name} " for letter, name in _GREEK})
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_PLAIN_SCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789-+n0123456789")
_HTML = re.compile(r"<(sup|sub)>([^<>]{0,200})</\1>")

# A response quoted from JSON or Python doubles its backslashes.
_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?=(?:left|right|[dtc]?frac|sqrt|pi|theta|begin|end|text|cdot|times|infty|cup|pm|circ|in)(?![A-Za-z]))"
)
_DIGIT_GAP = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|\\,|\\ |\\;|\\:|~)(?=[0-9]{3}(?![0-9]))")
_MATH_MARK = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$")
_SPACING = re.compile(
    r"(?<!\\)\\[,;: >]|~|\\(?:quad|qquad|thinspace|enspace|hfill|displaystyle|textstyle|scriptstyle|limits|nolimits"
    r"|tiny|small|normalsize|large|Large|LARGE|huge|Huge|checkmark|blacksquare|square|bf|rm|it|cal|sf|tt"
    r"|hline|mathstrut|strut|nonumber|notag|null|relax|therefore|ensuremath|mathord|mathinner)(?![A-Za-z])"
    r"|\\(?:noalign|tag\*?|label)\s*\{[^{}]*\}|\\(?:hspace|vspace|phantom|hphantom|vphantom)\*?(?:\{[^{}]*\}|\s+[^{}\\\s](?=\s*[0-9]))"
)
_SIZED = re.compile(r"\\(left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*(\.(?![0-9]))?")
_SPELLINGS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leqslant": "le",
    "leq": "le", "geqslant": "ge", "geq": "ge", "leqq": "le", "geqq": "ge", "neq": "ne", "lvert": "|",
    "rvert": "|", "vert": "|", "lVert": "|", "rVert": "|", "Vert": "|",
    "varnothing": "emptyset", "lbrace": "{", "rbrace": "}", "ast": "cdot", "rightarrow": "to",
    "longrightarrow": "to", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "vdots": "ldots",
    "cupdot": "cup", "bigcup": "bigcup", "sqcup": "cup", "backslash": "setminus", "smallsetminus": "setminus",
    "degree": "circdegree", "textdegree": "circdegree", "cent": "centsign", "varepsilon": "epsilon",
    "varphi": "phi", "vartheta": "theta", "varrho": "rho", "thinsp": "", "tg": "tan", "ctg": "cot", "arctg": "arctan",
    "iff": "Leftrightarrow", "land": "wedge", "lor": "vee", "colon": ":", "lt": "<", "gt": ">", "lparen": "(",
    "rparen": ")", "lbrack": "[", "rbrack": "]", "approxeq": "approx", "simeq": "approx", "thickapprox": "approx",
    "nolinebreak": "", "nobreak": "", "space": " ", "pounds": "currency", "euro": "currency", "textdollar": "$",
    "sfrac": "frac", "nicefrac": "frac", "flatfrac": "frac", "surd": "sqrt", "cr": "\\\\", "tabularnewline": "\\\\",
    "newline": "\\\\", "implies": "Rightarrow", "Longrightarrow": "Rightarrow", "arcctg": "arccot",
    "imath": "{i}", "jmath": "{j}",
}  # fmt: skip
_TEXT = r"\\(?:text|mbox|mathrm|textrm|textbf|rm)\s*"
# Forms that are not one command: TeX's own roots, transposes, sets of numbers, functions set as text, marks of digits.
_FORMS = tuple(
    (re.compile(form), spelling)
    for form, spelling in (
        (r"\\root\s*\{?\s*([^{}\\]{1,20}?)\s*\}?\s*\\of(?![A-Za-z])\s*", r"\\sqrt[\1]"),
        (rf"^{_TEXT}\{{\s*([-+0-9.,/%\s]+?)\s*\}}$", r"\1"),
        (
            rf"\(\s*(?:{_TEXT}\{{\s*)?mod(?![a-z])\s*\}}?\s*([^()]{{1,30}})\)",
            r"\\pmod{\1}",
        ),
        (r"\^\s*\{?\s*\\(?:top|intercal)(?![A-Za-z])\s*\}?", "^T"),
        (_TEXT + r"\{\s*(arc[a-z]{3}|sin|cos|tan|cot|csc|ln|log|lcm|gcd|cis|exp)\s*\}", r"\\operatorname{\1}"),
        (r"\\cis(?![A-Za-z])", r"\\operatorname{cis}"),
        (
            r"(\\in\s*)(?:\\mathbb|\\mathbf|\\mathrm|\\bf)?\s*\{?\s*([NZQRC])\s*\}?(?![A-Za-z{(])",
            r"\1\\mathbb{\2}",
        ),
        (r"\\mathbb\s*\{?\s*[NZ]\s*\}?\s*[\^_]\s*\{?\s*[*+]\s*\}?", r"\\mathbb{N}"),
        (r"([\])])\s*(?:U|\\bigcup)\s*(?=[\[(])", r"\1\\cup "),
        (r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))", ""),
        (rf"(?<=[0-9])\s*\^\s*(?:\{{\s*)?(?:{_TEXT}\{{\s*)?o(?![A-Za-z])\s*\}}?\}}?", r"^\\circ "),
        (r"(?<=[0-9])\s*[xX]\s*10\s*\^", r"\\times 10^"),
        (r"\+\s*/\s*-", r"\\pm "),
        (r"(?<=[0-9.])\\dot\s*\{?([0-9])\}?([0-9]*)\s*\\dot\s*\{?([0-9])\}?", r"\\overline{\1\2\3}"),
    )
)
_FORM_MARKS = re.compile(
    r"\( ?mod|"
    r"\\root|\\dot|\\top|\\intercal|\\text|\\mbox|\\mathrm|\\rm|\\cis|\\in[ {\\A-Z]|\\mathbb|[\])]\s*(?:U|\\big)|'"
    r"|\^\s*\{?\s*o|\^\{?\s*\\[tim]|[xX]\s*10|\+\s*/"
)
_TEXT_ENDING = re.compile(rf"(?:{_TEXT}\{{[.,;:?\s]*\}}|\{{\s*[.,;:]+\s*\}})$")
_GLUED_QUAD = re.compile(r"\\quad(?=[A-Za-z](?![A-Za-z]))")
_HALF_DAY = re.compile(r"(?<![A-Za-z])([aApP])\.\s?[mM]\b\.?")
_COLOR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_PLAIN_OPERATORS = (("!=", r"\ne "), ("<=", r"\le "), (">=", r"\ge "), ("=<", r"\le "), ("==", "="), ("**", "^"))
_EMPHASIS = ("**", "__", "`", '"')


def normalize_answer(text: str) -> str:
    r"""The canonical spelling of an answer's typesetting. Apply it to the gold answer and to the response.

    Gone: `$`, `\left`, `\right`, sizes, trailing punctuation, emphasis marks, invisible characters. Unicode
    signs become commands, and commands with several names get one. Words, units and separators stay: what
    they mean is for the parser to say. A text of more than `MAX_ANSWER_CHARS` is only stripped.
    """
    text = text.strip()
    if len(text) > MAX_ANSWER_CHARS:
        return text
    if not text.isascii() or not text.isprintable():
        text = _INVISIBLE.sub("", text)
    if not text.isascii():
        text = _RAISED.sub(lambda run: "^{" + run.group().translate(_PLAIN_SCRIPT) + "}", text)
        text = plain_characters(text)
        text = _LOWERED.sub(lambda run: "_{" + run.group().translate(_PLAIN_SCRIPT) + "}", text)
        text = text.translate(_SYMBOLS)
    text = _without_emphasis(text)
    if "<" in text:
        text = _HTML.sub(lambda tag: ("^{" if tag[1] == "sup" else "_{") + tag[2] + "}", text)
    if "\\" in text or "$" in text or "~" in text or "{,}" in text:
        text = _with_plain_commands(text)
    else:
        text = text.replace("&=", "=")
    if "." in text:
        text = _HALF_DAY.sub(r"\1m", text)
    for plain, command in _PLAIN_OPERATORS:
        text = text.replace(plain, command)
    text = " ".join(text.split())
    if _FORM_MARKS.search(text):
        for form, spelling in _FORMS:
            text = form.sub(spelling, text)
    return _without_dangling(text)


def _with_plain_commands(text: str) -> str:
    """The text without the commands of TeX that only typeset, and with one name for those that have several."""
    if r"\\" in text:
        text = _DOUBLED.sub(r"\\", text)
    text = without_line_environments(text)
    text = _DIGIT_GAP.sub("", text).replace(r"\!", "")
    text = _MATH_MARK.sub(" ", _SIZED.sub("", text))
    text = text.replace(r"\$", r"\currency ").replace(r"\%", "%").replace(r"\&", "&").replace("&=", "=")
    text = _SPACING.sub(" ", _GLUED_QUAD.sub(" ", text)).replace(r"\|", "|").replace(r"\#", "#")
    return _COMMAND.sub(_respelled, _COLOR.sub("", text))


def _respelled(command: "re.Match[str]") -> str:
    name = command[1]
    other = _SPELLINGS.get(name)
    if other is None:
        return command[0]
    if other == "circdegree":
        return r"^\circ "
    return "\\" + other if other[:1].isalpha() or other in "{}" and other else other


def _without_emphasis(text: str) -> str:
    """The text without Markdown marks around all of it."""
    for mark in _EMPHASIS:
        while len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    return text


def _without_dangling(text: str) -> str:
    """The text without line breaks, separators and a full stop at its end. Two full stops are an ellipsis."""
    while True:
        shorter = text
        if text.endswith(r"\\"):
            shorter = text[:-2]
        elif text.endswith((",", ";", ":", "?", "\\")) or (text.endswith(".") and not text.endswith("..")):
            shorter = text[:-1]
        elif text.endswith("}"):
            shorter = _TEXT_ENDING.sub("", text)
        if shorter == text:
            return text
        text = shorter.rstrip()
