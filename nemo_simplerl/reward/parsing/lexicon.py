r"""Words that carry mathematical meaning: units, functions, connectors, number words, fixed phrases."""

from fractions import Fraction


def words_of(text: str) -> frozenset[str]:
    """The set of the words of a text: tables are written as text, because lists of words would be long."""
    return frozenset(text.split())


def phrases_of(text: str) -> frozenset[str]:
    """The set of the phrases of a text, separated by bars."""
    return frozenset(text.split("|"))


CONNECTORS = frozenset({"and", "or"})

# Words that mean the empty set, whichever way it is written.
EMPTY_PHRASES = phrases_of(
    "no solution|no solutions|no real solution|no real solutions|empty set|the empty set|none exist"
)

INFINITE_PHRASES = frozenset({"infinitely many", "infinite", "positive infinity"})

# Before a value these say nothing.
ANSWER_PREFIXES = phrases_of(
    "the final answer is|the correct answer is|the answer is|final answer|answer is|answer|"
    "the solution is|solution is|the solution set is|solution set is|solution set|solution|ans"
)
ORDINAL_ENDINGS = frozenset({"st", "nd", "rd", "th"})

CHOICE_WORDS = ("option", "choice", "answer", "statement")

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_TENS = ["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * value for value, word in enumerate(_TENS, start=3)
}
NUMBER_WORDS["hundred"] = 100

FUNCTIONS = words_of(
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot arcsec arccsc ln log lg exp "
    "max min gcd lcm det dim deg sqrt abs floor ceil ceiling arg Re Im sgn"
)
# Spellings of plain text and of other countries.
FUNCTION_ALIASES = {
    "tg": "tan", "ctg": "cot", "arctg": "arctan", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
    "cosec": "csc", "ceiling": "ceil", "sinh": "sinh", "sign": "sgn",
}  # fmt: skip
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}
FUNCTION_LETTERS = frozenset("fgh")

# Unit word -> (dimension, size in the dimension's base unit). Sizes are exact, so that a conversion is.
_UNIT_TABLE = (
    ("time", "s sec secs second seconds", 1),
    ("time", "min mins minute minutes", 60),
    ("time", "h hr hrs hour hours", 3600),
    ("time", "day days", 86400),
    ("time", "week weeks", 604800),
    ("length", "mm millimeter millimeters millimetre millimetres", Fraction(1, 1000)),
    ("length", "cm centimeter centimeters centimetre centimetres", Fraction(1, 100)),
    ("length", "dm", Fraction(1, 10)),
    ("length", "m meter meters metre metres", 1),
    ("length", "km kilometer kilometers kilometre kilometres", 1000),
    ("length", "inch inches", Fraction(254, 10000)),
    ("length", "ft foot feet", Fraction(3048, 10000)),
    ("length", "yd yard yards", Fraction(9144, 10000)),
    ("length", "mi mile miles", Fraction(1609344, 1000)),
    ("mass", "mg", Fraction(1, 1000)),
    ("mass", "g gram grams", 1),
    ("mass", "kg kilogram kilograms", 1000),
    ("money", "cent cents", Fraction(1, 100)),
    ("money", "dollar dollars usd", 1),
    ("volume", "ml mL milliliter milliliters", Fraction(1, 1000)),
    ("volume", "l L liter liters litre litres", 1),
)  # fmt: skip
UNITS: dict[str, tuple[str, Fraction]] = {
    word: (dimension, Fraction(size)) for dimension, words, size in _UNIT_TABLE for word in words.split()
}

# Unit words without a conversion. Written plainly after a value, these and the units above of two letters or
# more are units; within \text{...} any words are.
PLAIN_UNITS = words_of(
    "square squared cubic unit units sq cu per percent percentage pct degree degrees radian radians rad "
    "deg mph kmh kph lb lbs oz pound pounds ounce ounces ton tons tonne tonnes acre acres gallon gallons "
    "pint pints quart quarts yuan euro euros rupees pounds year years month months people person students "
    "points times hz kHz Hz kPa Pa kN kJ kW mol amu eV keV MeV GeV mol rpm in"
) | frozenset(word for word in UNITS if len(word) > 1)

PERCENT_WORDS = frozenset({"percent", "percentage", "pct", "per cent"})
DEGREE_WORDS = frozenset({"degree", "degrees", "deg"})

# Words of two or three letters that are never a product of symbols.
SHORT_WORDS = words_of(
    "the is are if all any for not odd no yes of in on to at by as be but can has was day way one two six "
    "ten let so we it an than from am pm via per set"
)
_VOWELS = frozenset("aeiouyAEIOUY")


def is_word(run: str) -> bool:
    """Whether a run of plain letters is a word rather than a product of symbols such as `abx`."""
    if run.lower() in SHORT_WORDS:
        return True
    if len(run) < 4 or not (run.islower() or run[1:].islower()):
        return False
    ordered = all(ord(right) - ord(left) == 1 for left, right in zip(run, run[1:], strict=False))
    return not ordered and any(letter in _VOWELS for letter in run)
