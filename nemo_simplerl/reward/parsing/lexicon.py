r"""Words that carry mathematical meaning: units, functions, connectors, number words, fixed phrases."""

import re
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
    "no solution|no solutions|no real solution|no real solutions|empty set|the empty set|none exist|no solution exists"
    "|no solutions exist|there is no solution|there are no solutions|there is no real solution"
    "|there are no real solutions"
)
# Words that mean the set of all real numbers.
NUMBER_SETS = {
    r"\mathbb{R}": phrases_of(
        "all real numbers|all reals|all real|the real numbers|real numbers|the set of all real numbers|the reals|"
        "any real number|set of all real numbers|every real number|the set of real numbers|all the reals|"
        "all the real numbers|all real values"
    ),
    r"\mathbb{Z}": phrases_of("all integers|the integers|the set of all integers|the set of integers|any integer"),
}

SYNONYMS = {"dne": "does not exist", "d.n.e": "does not exist", "the limit does not exist": "does not exist"}
INFINITE_PHRASES = frozenset({"infinitely many", "infinite", "infinity", "positive infinity"})

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

# Behind a number or a number word they multiply. Abbreviations of one letter are read in their own case.
SCALE_WORDS = {
    word: size
    for size, words in (
        (10, "tens"), (12, "dozen dozens"), (20, "score scores"), (100, "hundred hundreds"), (144, "gross grosses"),
        (1000, "thousand thousands grand grands thou k kilo kilos"), (10**4, "myriad myriads"),
        (10**5, "lakh lakhs lac lacs"),
        (10**6, "million millions mil mill mills mio mln mn M MM"), (10**7, "crore crores"),
        (10**9, "billion billions milliard milliards bil bio bln bn B"), (10**12, "trillion trillions tril trn tn"),
        (10**15, "quadrillion quadrillions"), (10**18, "quintillion quintillions"), (10**100, "googol googols"),
    )
    for word in words.split()
}  # fmt: skip
_IRREGULAR_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def _ordinal(word: str) -> str:
    return _IRREGULAR_ORDINALS.get(word) or (word[:-1] + "ieth" if word.endswith("y") else word + "th")


ORDINALS = {_ordinal(word): value for word, value in NUMBER_WORDS.items()} | {
    word + "th": size for word, size in SCALE_WORDS.items() if len(word) > 6 and not word.endswith("s")
}
FRACTION_WORDS = {
    "half": Fraction(1, 2),
    "halves": Fraction(1, 2),
    "quarter": Fraction(1, 4),
    "quarters": Fraction(1, 4),
}
FRACTION_WORDS |= {
    word + ending: Fraction(1, value) for word, value in ORDINALS.items() if value > 2 for ending in ("", "s")
}
ARTICLES = frozenset({"a", "an"})

# No unit has one of these words: they say a number, change the one before them, or deny, bound or hedge it.
_OPERATOR_WORDS = words_of(
    "plus minus over choose mod modulo root sqrt squared cubed factorial factorials power exponent raised divided "
    "multiplied added subtracted increased decreased reduced doubled double doubles tripled halved twice thrice "
    "inverse reciprocal reciprocals negative negated inverted log base point fold remainder off permille nth nths"
)
_HEDGES = words_of(
    "not no non if for all is are was were be but than can cannot let so we it maybe perhaps possibly probably either "
    "neither nor when where with such some every only except least most less lesser fewer greater larger smaller below "
    "under above beyond between exceeding approximately about around roughly nearly almost given because since then "
    "otherwise unless until never none nothing wrong incorrect false invalid impossible undefined unknown infinity"
)
VALUE_WORDS = (
    frozenset(NUMBER_WORDS) | {word + "s" for word in NUMBER_WORDS if word not in ("zero", "one", "six")} | {"sixes"}
    | frozenset(SCALE_WORDS) | frozenset(ORDINALS) | frozenset(FRACTION_WORDS) | _OPERATOR_WORDS | _HEDGES
) - {"second"}  # fmt: skip

FUNCTIONS = words_of(
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot arcsec arccsc ln log lg exp "
    "max min gcd lcm det dim deg sqrt abs floor ceil ceiling arg Re Im sgn cis"
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

# Shares of one that are no percentages; behind a bare number they make another value.
SHARES = {
    name: Fraction(1, size)
    for size, names in ((10**4, "basis point|basis points|bp|bps"), (10**6, "ppm"), (10**9, "ppb"))
    for name in names.split("|")
}

# Written plainly after a value, these and the units above of two letters or more are units, not products of symbols.
PLAIN_UNITS = words_of(
    "square squared cubic unit units sq cu per percent percentage pct degree degrees radian radians rad "
    "deg mph kmh kph lb lbs oz pound pounds ounce ounces ton tons tonne tonnes acre acres gallon gallons "
    "pint pints quart quarts yuan euro euros rupees pounds year years month months people person students "
    "points times hz kHz Hz kPa Pa kN kJ kW mol amu eV keV MeV GeV mol rpm in"
) | frozenset(word for word in UNITS if len(word) > 1)
# Products as often as units: plainly they are units only behind a space.
SPACED_UNITS = words_of("mg mi in cu sq ml hr")
CURRENCY_CODES = words_of("USD EUR GBP CNY RMB JPY INR CAD AUD")

_PREFIXES = "Y Z E P T G M k h da d c m u n p f a"
_SYMBOLS = "m g s A K mol cd N J W Pa Hz V C F T H Wb lm lx Bq Gy Sv L l eV cal bar bit Ohm"
_PREFIX_NAMES = "tera giga mega kilo hecto deca deci centi milli micro nano pico femto"
_BASE_NAMES = (
    "meter metre gram gramme second liter litre watt volt joule newton pascal hertz ampere amp ohm farad coulomb tesla "
    "henry mole calorie byte bit electronvolt kelvin candela lumen lux becquerel gray sievert weber radian pixel"
)
_OTHER_UNITS = words_of(
    "gm gms gr h hr hrs d wk wks mo mos yr yrs min mins sec secs am pm o'clock century centuries decade fortnight "
    "lifetime inch in foot feet ft yd mi mile furlong fathom angstrom parsec hectare ha acre sqft cc gal gals qt "
    "qts pt pts cup tbsp tsp tablespoon teaspoon floz fl barrel bushel stone st lb lbs oz ton tonne t u amu Da "
    "dyn dyne erg hp psi atm torr Torr mmHg mph kmh kph kmph rpm fps mps knot kn kt ppm ppb dB db celsius "
    "fahrenheit R deg degree sr rev revolution turn gon cent dollar usd eur gbp euro pound pence penny pennies "
    "yuan rmb yen rupee rs won peso franc ruble buck unit pct each person child people men women children teeth "
    "geese mice oxen fish sheep deer dice cattle data money time way wh kWh Wh MWh kcal kCal Cal BTU Btu gauss G "
    "molar mM"
)
# Words that may follow a unit and leave the value as it is.
AFTER_UNITS = words_of(
    "old each apiece long high tall wide deep thick away apart total altogether left remaining increase decrease chance"
)
PREPOSITIONS = words_of("per of in each a an from on at the")
_UNIT_MODIFIERS = words_of("square squared cubic sq cu per")
UNIT_WORDS = (
    frozenset(prefix + symbol for prefix in ["", *_PREFIXES.split()] for symbol in _SYMBOLS.split())
    | frozenset(
        prefix + name + s for prefix in ["", *_PREFIX_NAMES.split()] for name in _BASE_NAMES.split() for s in ("", "s")
    )
    | (PLAIN_UNITS - _UNIT_MODIFIERS) | frozenset(UNITS) | _OTHER_UNITS
) - {"as", "at"}  # fmt: skip
_LARGE_NUMBER = re.compile(r".*illi(?:on|ard)s?")


def changes_value(word: str) -> bool:
    """Whether a word behind a number makes another value, a bound or a denial of it: such a word is in no unit."""
    word = word if len(word) < 3 else word.lower()
    return word in VALUE_WORDS or _LARGE_NUMBER.fullmatch(word) is not None


def is_unit_word(word: str) -> bool:
    """Whether a word is a unit, or the plural of a noun: what is counted."""
    lower = word.lower()
    if word in UNIT_WORDS or (len(word) > 2 and lower in UNIT_WORDS):
        return True
    return len(lower) > 3 and lower.endswith("s") and not lower.endswith(("ss", "us", "is"))


def is_unit(words: list[str], one: bool) -> bool:
    """Whether words behind a number are a unit or what is counted: a noun with what goes before and after it.

    `one`: the number is 1, so that the noun may be a singular that no table has. Call it for words of which none
    `changes_value`.
    """
    if not words:
        return False
    if words[0] in ORDINAL_ENDINGS:  # 5th grade
        return True
    at = next((at for at, word in enumerate(words[:-1]) if at and word.lower() in PREPOSITIONS), len(words))
    noun = words[:at]
    while len(noun) > 1 and noun[-1].lower() in AFTER_UNITS:
        noun.pop()
    if not noun or any(len(word) < 3 and word not in UNIT_WORDS and word not in _UNIT_MODIFIERS for word in noun):
        return False
    return is_unit_word(noun[-1]) or (one and len(noun[-1]) > 2)


PERCENT_WORDS = frozenset({"percent", "percentage", "pct", "per cent"})
DEGREE_WORDS = frozenset({"degree", "degrees", "deg"})

# Words of two or three letters that are words where they stand alone in running text, and products elsewhere.
SHORT_WORDS = words_of(
    "the is are if all any for not odd no yes of in on to at by as be but can has was day way one two six "
    "out ten let so we it an am pm via per set dne"
)
# Those that may be the whole of an answer.
SHORT_ANSWERS = words_of("dne yes no odd all any one two six ten set day")
_VOWELS = frozenset("aeiouyAEIOUY")


def is_word(run: str) -> bool:
    """Whether a run of four plain letters or more is a word rather than a product of symbols such as `abcd`."""
    if len(run) < 4 or not (run.islower() or run[1:].islower()):
        return False
    ordered = all(ord(right) - ord(left) == 1 for left, right in zip(run, run[1:], strict=False))
    return not ordered and any(letter in _VOWELS for letter in run)


def is_known_word(run: str) -> bool:
    """Whether a run of letters is a unit, a noun in the plural or a word that changes a value."""
    return is_unit_word(run) or changes_value(run)
