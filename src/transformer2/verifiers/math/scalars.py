"""Two scalars, as far as spelling, units and exact numbers tell whether they are equal."""

from __future__ import annotations

import re

from transformer2.verifiers.math.parts import unwrapped
from transformer2.verifiers.numeric import parse_number

__all__ = ["compare_as_written"]

_DOLLARS = re.compile(r"(?P<sign>[-+]?)\\\$(?=[-+.\d\\])|\\\$\Z")
_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_IN_TEXT = re.compile(r"\\text\{([A-Za-z][A-Za-z. /-]*)\}(\^\{[23]\})?\Z")
_PLAIN_WORDS = re.compile(r"(?<=[\d})])([A-Za-z][A-Za-z]+)(\^\{[23]\})?\Z")
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|no|about|approx\w*|thousand|million|billion|trillion|hundred|dozen|half|plus|minus|times|squared"
    r"|cubed|pi|maybe|to|base|factorial|over|sqrt|root|[ap]\.?m)\b",
    re.IGNORECASE,
)
_UNITS = {
    "degree": "degrees deg", "percent": "pct", "dollar": "dollars usd", "cent": "cents", "inch": "inches in",
    "foot": "feet ft", "yard": "yards yd", "mile": "miles mi", "meter": "meters metre metres m",
    "centimeter": "centimeters centimetres cm", "millimeter": "millimeters mm", "kilometer": "kilometers km",
    "second": "seconds sec s", "minute": "minutes min", "hour": "hours hr hrs h", "day": "days", "week": "weeks",
    "month": "months", "year": "years", "gram": "grams g gm", "kilogram": "kilograms kg", "pound": "pounds lb lbs",
    "ounce": "ounces oz", "liter": "liters litres", "gallon": "gallons", "unit": "units", "way": "ways",
    "radian": "radians", "student": "students", "point": "points", "mph": "milesperhour",
}  # fmt: skip
_CANONICAL = {word: unit for unit, words in _UNITS.items() for word in (unit, *words.split())}
_EXACT = re.compile(r"[-+]?(?:\d+|\d*\.\d+|\d+\.)(?:/\d+)?|[-+]?\d*\\frac\{[-+]?\d+\}\{\d+\}")
# Numbers in a base, ratios, lists, rows: their spelling is what they are.
_LITERAL = re.compile(r"(?<!\\log)_|[:,&;'|<>]|\\text|\\\\|\d \d|\\(?:le|ge|lt|gt|ne|in|overline)(?![a-z])")
_LETTERS = re.compile(r"(?<=\\)[A-Za-z]+|[A-Za-z]")
# What may stand in an answer though the gold one does without it, without backslashes.
_FREE = frozenset("frac sqrt pi cdot times div circ sin cos tan cot sec csc log ln binom i e".split())  # noqa: SIM905


def compare_as_written(gold: str, answer: str) -> bool | None:
    """Whether two scalars in normal form are equal; None when only algebra can tell.

    A unit may be left out or added, but not exchanged for another one.
    """
    (gold, gold_unit), (answer, answer_unit) = _with_unit(gold), _with_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    gold, answer = unwrapped(gold), unwrapped(answer)
    if gold == answer:
        return True
    if _EXACT.fullmatch(gold) and _EXACT.fullmatch(answer):
        numbers = parse_number(gold), parse_number(answer)
        if None not in numbers:
            return numbers[0] == numbers[1]
    if _is_words(gold) or _is_words(answer):
        return _words(gold) == _words(answer)
    if not gold or not answer or _LITERAL.search(gold + answer):
        return False
    if set(_LETTERS.findall(answer)) - set(_LETTERS.findall(gold)) - _FREE:
        return False
    return None


def _with_unit(text: str) -> tuple[str, str]:
    """A scalar without its unit, and the unit's name, "" when it has none."""
    if money := _DOLLARS.search(text):
        return text[: money.start()] + (money["sign"] or "") + text[money.end() :], "dollar"
    if text.endswith("%"):
        return text[:-1].rstrip(), "percent"
    if text.endswith(r"^{\circ}") and not _TRIG.search(text):
        return text.removesuffix(r"^{\circ}"), "degree"
    word = _IN_TEXT.search(text)
    if word and word.start() and not _NO_UNIT.search(word[1]):
        return text[: word.start()], _unit(word[1], word[2])
    word = _PLAIN_WORDS.search(text)
    if word and (unit := _unit(word[1], word[2])).split()[-1] in _UNITS:
        return text[: word.start()], unit
    return text, ""


def _unit(words: str, power: str | None) -> str:
    """One name: "sq. inches", "inches^2" and "squareinches" are "square inch"."""
    name = words.lower().strip(" .")
    of_power = re.match(r"(square|sq|cubic|cu)\b\.? ?|(square|sq|cubic)(?=[a-z])", name)
    prefix = ""
    if of_power:
        prefix, name = "cubic " if name[0] == "c" else "square ", name[of_power.end() :]
    elif power:
        prefix = "square " if "2" in power else "cubic "
    return prefix + (_CANONICAL.get(name.replace(" ", "")) or name.removesuffix("s") or "unit")


def _is_words(text: str) -> bool:
    bare = re.sub(r"\\text|[{}]", "", text)
    return (
        re.fullmatch(r"\(?[A-Z]\)?|[A-Za-z][A-Za-z. ]{2,}|[\d:]+ ?(?i:[ap]\.?m\.?)|[A-Z][a-z]+ \d+", bare) is not None
    )


def _words(text: str) -> str:
    bare = re.sub(r"\\text|[\s.{}]", "", text)
    letter = re.fullmatch(r"\(?([A-Za-z])\)?", bare)
    return letter[1] if letter else bare.lower()
