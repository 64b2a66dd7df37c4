r"""Two scalars, as far as spelling, units and exact numbers tell whether they are equal."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from transformer2.verifiers.math.parts import unwrapped

__all__ = ["compare_scalars"]

_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_DOLLARS = re.compile(r"([-+]?)(?:\\\$|\\text\{(?:\\\$|euro|pound|USD|US\\\$) ?\})(?=[-+.\d\\])")
_UNIT = re.compile(
    r"(?:\\\$|%|\^\{\\circ\}[CF]?"
    r"|(?:\\text\{[A-Za-z][A-Za-z. /'^\d-]*+(?:\{-?\d\}[A-Za-z. /'^-]*+)?\}(?:\^\{-?\d\})?(?:/|\\cdot)?)+)\Z"
    r"|(?<=[\d})])(?: ?[A-Za-z]{2,}+(?:\^\{[23]\})?)+(?:/[A-Za-z]+(?:\^\{[23]\})?)?\Z"
)
_ORDINAL = re.compile(r"(?<=\d)(?:\^\{(?:\\text\{)?(?:st|nd|rd|th)\}?\}|\\text\{(?:st|nd|rd|th)\}|(?:st|nd|rd|th))\Z")
# Words behind a number that change what it says, or say nothing of what is counted.
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|no|about|approx\w*|(?:ten |hundred )?(?:thousand|million|billion|trillion|hundred|ten)(?:s|ths?)?"
    r"|dozens?|score|gross|half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|ths|plus"
    r"|minus|times|pi|maybe|to|base|factorial|over|sqrt|root|[ap]\.?m|is|are|was|isn't|wrong|if|but|than|less|more|mod"
    r"|modulo|choose|one|two|three|four|five|six|seven|eight|nine|zero|point|ish"
    r"|elevenths?|twelfths?|\w+teenths?|\w+tieths?|lakhs?|crores?|bn|mil|doubled|tripled|rejected"
    r"|extraneous|excluded|false|fails|debt|repeating|recurring|(?-i:(?![msghlLNJWVCF]\b)[A-Za-z]))\b",
    re.IGNORECASE,
)
_MEASURES = {
    "degree": "degrees deg", "percent": "percents pct", "dollar": "dollars usd", "cent": "cents", "inch": "inches in",
    "foot": "feet ft", "yard": "yards yd", "mile": "miles mi", "meter": "meters metre metres m",
    "centimeter": "centimeters centimetre centimetres cm", "millimeter": "millimeters mm", "radian": "radians rad",
    "kilometer": "kilometers kilometre kilometres km", "second": "seconds sec s", "minute": "minutes min",
    "hour": "hours hr hrs h", "day": "days", "week": "weeks", "month": "months", "year": "years",
    "gram": "grams g gm", "kilogram": "kilograms kg", "pound": "pounds lb lbs", "ounce": "ounces oz",
    "liter": "liters litre litres l", "gallon": "gallons gal", "unit": "units", "milliliter": "ml milliliters",
    "euro": "euros",
}  # fmt: skip
_CANONICAL = {word: unit for unit, words in _MEASURES.items() for word in (unit, *words.split())}
_MARKS = {
    r"\$": " dollar ", "%": " percent ", r"^{\circ}C": " degree ", r"^{\circ}F": " degree ", r"^{\circ}": " degree ",
    "^{": "^", "mph": "miles/hour", "milesper": "miles/", r"\text": " ", r"\cdot": " ", "{": " ", "}": " ", ".": " ",
}  # fmt: skip
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3", "cubed": "^3"}
_NUMBER = re.compile(r"([-+]?)(?:(?=\.?\d)(\d*\.?\d*)(?:/(\d+))?|\\frac\{(\d+)\}\{(\d+)\})")
_SEGMENT = re.compile(r"\A\\overline\{([A-Z]{2})\}\Z")
_BASE = re.compile(r"([-+]?)\(?([0-9A-Z.]+)\)?(?:_\{(?:base ?)?| ?\(?base ?)\(?(\w+)\)?\}?")
_BASES = dict(zip("two three four five six seven eight nine".split(), "23456789", strict=True))  # noqa: SIM905
# A choice, words, a time of day, a date.
_WORDS = re.compile(
    r"(?:(?i:option|choice) )?\(?[A-Z]\)?|[A-Za-z][A-Za-z. ]{2,}|[\d:]+ ?(?i:[ap]\.?m\.?)|[A-Z][a-z]+ ?\d+"
)
_LETTERS = re.compile(r"(?<=\\)[A-Za-z]+|[A-Za-z]")
# What may stand in an answer though the gold one does without it, without backslashes.
_FREE = frozenset({
    "frac", "sqrt", "pi", "cdot", "times", "div", "circ", "overline", "sin", "cos", "tan", "cot", "sec", "csc",
    "arcsin", "arccos", "arctan", "log", "ln", "exp", "binom", "i", "e",
})  # fmt: skip


def compare_scalars(gold: str, answer: str, by_value: Callable[[str, str], bool] | None = None) -> bool | None:
    """Whether two scalars in normal form are equal.

    A unit may be left out or added, but not exchanged for another one.

    Args:
        gold: The gold one.
        answer: The other.
        by_value: Compares expressions without units; None gives None where only their values can tell.
    """
    (gold, gold_unit), (answer, answer_unit) = _with_unit(gold), _with_unit(answer)
    if gold_unit and answer_unit and not _agree(gold_unit, answer_unit):
        return False
    if gold == answer:
        return True
    numbers = _number(gold), _number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if _is_words(gold) or _is_words(answer):
        return _words(gold) == _words(answer)
    bases = _base(gold), _base(answer)
    if bases != (None, None):
        return bases[0] == bases[1]
    if not gold or not answer or set(_LETTERS.findall(answer)) - set(_LETTERS.findall(gold)) - _FREE:
        return False
    return by_value and by_value(gold, answer)


def _with_unit(text: str) -> tuple[str, list[str]]:
    """A scalar without what it is counted in, and the sorted words of that: "square inch" and "in^{2}": inch^2."""
    text, units = _ORDINAL.sub("", text), []
    if money := _DOLLARS.match(text):
        text, units = money[1] + text[money.end() :], ["dollar"]
    while (found := _UNIT.search(text)) and found.start() and not (found[0][0] == "^" and _TRIG.search(text)):
        words, written_plain = _unit(found[0]), found[0][0].isalpha() or found[0][0] == " "
        measures = [word for word in words if re.sub(r"[/^\d-]", "", word) in _MEASURES]
        if not words or (written_plain and not measures):
            break
        text, units = text[: found.start()].rstrip(), sorted(units + words)
    return unwrapped(_SEGMENT.sub(r"\1", text)), units


def _unit(text: str) -> list[str]:
    r"""The words of a unit, [] when it is none."""
    words = text
    for mark, word in _MARKS.items():
        words = words.replace(mark, word)
    words = re.sub(r"\bper\b", "/", re.sub(r" *([/^]) *", r"\1", words))
    if _NO_UNIT.search(words.replace("/", " ")):
        return []
    found: list[str] = []
    prefix = ""
    for slash, name, power in re.findall(r"(/?) ?([a-z']+)((?:\^-?\d)?)", words.lower()):
        if (joined := re.match(r"(square|sq|cubic)(?=[a-z])", name)) and name[joined.end() :] in _CANONICAL:
            prefix, name = _POWERS[joined[1]], name[joined.end() :]
        if name in ("square", "sq", "cubic", "cu"):
            prefix = _POWERS[name]
        elif name in ("squared", "cubed"):
            if not found:
                return []
            found[-1] += _POWERS[name]
        else:
            found.append(slash + (_CANONICAL.get(name) or name.removesuffix("s").removesuffix("'")) + (power or prefix))
            prefix = ""
    return found


def _agree(gold: list[str], answer: list[str]) -> bool:
    """One is the other with words to spare ("ways", "different ways"), but no measure or power of one."""
    spare = set(gold) ^ set(answer)
    known = any(re.split(r"\^", word)[0] in _MEASURES or word[0] == "/" for word in spare)
    return not known and (set(gold) <= set(answer) or set(answer) <= set(gold))


def _number(text: str) -> Fraction | None:
    r"""An exact number: 5, -0.5, 1/2, \frac{1}{2}."""
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    bottom = int(found[3] or found[5] or 1)
    value = Fraction(found[2].rstrip(".") or 0) if found[2] is not None else Fraction(int(found[4]))
    return None if bottom == 0 else (-1 if found[1] == "-" else 1) * value / bottom


def _base(text: str) -> tuple[str, ...] | None:
    """Sign, digits and base of a number such as `52_{8}`."""
    found = _BASE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    return found and (found[1].strip("+"), found[2].lstrip("0"), _BASES.get(found[3], found[3]))


def _is_words(text: str) -> bool:
    return _WORDS.fullmatch(re.sub(r"\\text|[{}]", "", text)) is not None


def _words(text: str) -> str:
    bare = re.sub(
        r"(?i)\A(?:an?|the|option|choice|there (?:is|are)) | exists?\Z", "", re.sub(r"\\text|[.{}]", "", text)
    )
    letter = re.fullmatch(r"\(?([A-Za-z])\)?", bare)
    return letter[1] if letter else re.sub(r"s\b| ", "", bare).lower()  # "no solutions" is "no solution"
