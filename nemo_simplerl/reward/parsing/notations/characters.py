"""Digits and letters of other scripts and styles: full-width, circled, mathematical bold, Arabic, Chinese."""

import re
import unicodedata
from fractions import Fraction

_CIRCLED = re.compile("[①-⑳⑴-⑽➀-➉❶-❿](?:[ ,，、]*[①-⑳⑴-⑽➀-➉❶-❿])*")
_STYLED = re.compile("[\U0001d400-\U0001d7ff！-～ℎℯℊℓ]|[^\x00-\x7f]")
_SCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉"
_PUNCTUATION = frozenset("｛｝［］～")
_CHINESE_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000}
_CHINESE_MYRIADS = {"万": 10**4, "亿": 10**8}
_NUMERAL = "[零〇一二两三四五六七八九十百千万亿]{1,30}"
_CHINESE = re.compile(rf"(负?)(?:({_NUMERAL})分之)?({_NUMERAL})(?:点([零〇一二三四五六七八九]{{1,30}}))?")
_CHINESE_PERCENT = re.compile(rf"百分之({_NUMERAL})")
_SCALED = re.compile(r"(?<=[0-9])\s*([万亿])")
# Measure words and units behind a number, with the units that have a size.
_MEASURES = {
    "平方米": "m^2", "平方厘米": "cm^2", "立方米": "m^3", "立方厘米": "cm^3", "千米": "km", "公里": "km", "厘米": "cm",
    "毫米": "mm", "分米": "dm", "米": "m", "千克": "kg", "公斤": "kg", "克": "g", "小时": "hours", "分钟": "minutes",
    "秒": "seconds", "天": "days", "元": "yuan", "度": "degrees",
}  # fmt: skip
_COUNTERS = "个名只件条次种人岁张本辆块棵支朵头匹把页组对位台间家"
_MEASURE = re.compile(
    rf"(?<=[0-9)}}])\s*(?:\\text\s*\{{\s*|[（(]\s*)?({'|'.join(_MEASURES)}|[{_COUNTERS}])(?:\s*[）)}}])?\s*$"
)


def plain_characters(text: str) -> str:
    """The text with digits and letters of other scripts and styles as plain ones; what they mean is kept."""
    text = _CIRCLED.sub(_listed, text)
    text = _STYLED.sub(_plain, text)
    text = _CHINESE_PERCENT.sub(lambda found: f"{_chinese_integer(found[1])}%", text)
    if whole := _CHINESE.fullmatch(text.strip()):
        return _chinese_number(whole)
    text = _SCALED.sub(lambda found: rf" \times {_CHINESE_MYRIADS[found[1]]}", text)
    return _MEASURE.sub(_measure, text)


def _listed(run: "re.Match[str]") -> str:
    """Circled numbers as a list, because ①③ are two statements and not thirteen."""
    return ", ".join(str(int(unicodedata.numeric(letter))) for letter in run[0] if letter not in " ,，、")


def _plain(found: "re.Match[str]") -> str:
    letter = found[0]
    if letter in _SCRIPTS or letter in _PUNCTUATION:
        return letter
    decimal = unicodedata.decimal(letter, None)
    if decimal is not None:
        return str(decimal)
    if unicodedata.decomposition(letter).startswith("<fraction>"):
        value = Fraction(str(unicodedata.numeric(letter))).limit_denominator(100)
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    is_styled = "\U0001d400" <= letter <= "\U0001d7ff" or "！" <= letter <= "～" or letter in "ℎℯℊℓ"
    return unicodedata.normalize("NFKC", letter) if is_styled else letter


def _chinese_integer(numeral: str) -> int:
    """The value of 一百二十 or 三万五; digits side by side are read one by one."""
    if all(letter in _CHINESE_DIGITS for letter in numeral):
        return int("".join(str(_CHINESE_DIGITS[letter]) for letter in numeral))
    total = section = digit = 0
    for letter in numeral:
        if letter in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[letter]
        elif letter in _CHINESE_UNITS:
            section += (digit or 1) * _CHINESE_UNITS[letter]
            digit = 0
        else:
            total = (total + section + digit or 1) * _CHINESE_MYRIADS[letter]
            section = digit = 0
    return total + section + digit


def _chinese_number(found: "re.Match[str]") -> str:
    sign, below, numeral, decimals = found.groups()
    value = str(_chinese_integer(numeral))
    if decimals:
        value += "." + "".join(str(_CHINESE_DIGITS[letter]) for letter in decimals)
    if below:
        value = rf"\frac{{{value}}}{{{_chinese_integer(below)}}}"
    return ("-" if sign else "") + value


def _measure(found: "re.Match[str]") -> str:
    unit, _, exponent = _MEASURES.get(found[1], "units").partition("^")
    return rf"\text{{ {unit}}}" + (f"^{exponent}" if exponent else "")
