r"""Numeric answers: is the one number that a completion ends on equal to the gold one?

Where the final answer stands, `final` says; this module reads a number there. One number, with its unit: a choice of
numbers is refused, whichever of them is right, and so is a sum or a guess that nobody worked out ("5 + 5", "5!",
"> 18", "maybe 18", "A18"). "1.5e-5" and "1.5 x 10^-5" are numbers, "10^5" and "1/2e3" are none. Values are compared
exactly, as fractions.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from transformer2.types import Verdict
from transformer2.verifiers.final import Final, Reader, final_answer, readable
from transformer2.verifiers.phrases import BECAUSE, MARKER

__all__ = ["final_number", "parse_number", "verify_number"]

_DIGITS = re.compile("[0-9]")
_WORD = (
    r"(?:zero|one(?!\s+of\b)|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|half|quarter)"
)
_WORDS = re.compile(rf"\s*(?:(?:about|only|actually|a)\s+)*{_WORD}\b", re.IGNORECASE)
_THOUSANDS = {"hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![0-9A-Za-z)])[-+]\s*)?(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?(?P<top>{_UNSIGNED})"
    r"(?:e(?P<power>[-+]?[0-9]{1,3})(?!\.?[0-9])"
    rf"|(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?"
    r"(?P<scale>k\b|\s*(?:hundred|thousand|million|billion|trillion)s?\b)?)",
    re.IGNORECASE,
)
_TIMES_A_POWER = re.compile(  # 1.5 x 10^-5, 1.5 \times 10^{-5}, 3 · 10⁸
    r"(?<=[0-9])\s?(?:[x×*·⋅]|\\times|\\cdot)\s?10\s?(?:\^\s?(?:(?P<bare>[-+]?[0-9]{1,3})|[{(]\s?(?P<closed>[-+]?[0-9]{1,3})\s?[)}])"
    r"|(?P<raised>[⁻⁺]?[⁰¹²³⁴-⁹]{1,3}))(?![0-9⁰¹²³⁴-⁹])"
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_GROUPING = re.compile(r"(?<=[0-9])(?:\{,\}|\\,|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
# 1.234,56 and 1.234.567: points that can only group digits. 1.234 may be a decimal, "1.234,567" a pair, and four groups
# an address.
_CONTINENTAL = re.compile(
    r"(?<![0-9.,])[1-9][0-9]{0,2}(?:(?:\.[0-9]{3})+,(?![0-9]{3}(?![0-9]))[0-9]+|(?:\.[0-9]{3}){2})(?![.,]?[0-9])"
)
_DECORATION = re.compile(r"(?:\*\*|__|\\[()\[\]$%!,;: ]|[{}$€£¥₹`]|\\left\b|\\right\b|\\q?quad\b)+")
_DOLLARS = re.compile(r"\b(?:US|CA|AU|NZ|HK|[ACS])\s?\\?\$")
_DEGREES = re.compile(r"\^\{?\\circ\b\}?")
_RESTATED = re.compile(r"\s+\(\s*#\s+[A-Za-z][A-Za-z ]*\)\s*\.?")  # 72 (72 clips)
# What makes a lone number something else. Before it: an operator, a name, a function, a hedge.
_BEFORE = re.compile(
    r"[-+*/^|!√][(\[\s]*\Z|[A-Za-z]\(\Z|_\Z|(?<!\bUSD)(?<!\bEUR)(?<!\bGBP)(?<!\bINR)(?<!\bRs)[A-Za-z]\Z"
    r"|\b[B-HJ-Zb-hj-z]\s+\Z|\b(?:over|under|above|below)\s+\Z",
)
_HEDGE = re.compile(
    r"\b(?:anything but|everything but|far from|nowhere near|hardly|barely|scarcely|unlike(?:ly)?|impossible"
    r"|improbable|except|without|short of|no|nor|never|neither|maybe|perhaps|possibly|might|could|at (?:least|most)"
    r"|up to|than|about|around|approx|approximately|roughly|close to|circa|ca?(?=\.\s)|nearly|almost|minus|negative"
    r"|plus|twice|thrice|double|triple|half|root|sqrt|log|ln"
    r"|(?:square|cube|third|quarter|factorial|opposite|inverse|reciprocal) of)\b"
    r"|[<>~!]\s?=|=\s?/\s?=",
    re.IGNORECASE,
)
# After it: an operator, a variable (but not the letter of a unit), or a word that changes the value.
_AFTER = re.compile(
    r"(?!\s+a\b)[\s)\]]*+(?:[+*^!|]|-(?![A-Za-z]{2,})|/(?!\s*(?:[A-Za-z]{2,}|h\b))|(?![gmhsldcptLCFWVJN]\b)[A-Za-z]\b)"
)
_CHANGED = re.compile(
    r"\b(?:or|plus|minus|squared|cubed|factorial|choose|doubled|tripled|halved|divided|multiplied|half|too|approx\w*|roughly|maybe|perhaps|possibly"
    r"|negative|pi|wrong|incorrect|false|mistaken|to the power|at (?:least|most)|below\s+(?:zero|freezing))\b",
    re.IGNORECASE,
)
# A word that multiplies or continues the number before it.
_MORE = re.compile(
    r"(?:\s*(?:bn|tn|mn|mio|mrd|myriad|mln|mil|m?illion|lakhs?|crores?|dozens?|score|gross|halves|(?:thi|fou|fif|six|seven|eigh|nin|ten|hundred"
    r"|thousand|million)(?:rd|r?th)s)|st|nd|rd|th|-?ish|\s*point|\s[^.\n]*\band\s+(?:an?\s+)?" + _WORD + r")\b",
    re.IGNORECASE,
)
_UNIT_EXPONENT = re.compile(r"(?<=[A-Za-z])(?<![0-9][eECP])(?:\s*\^)?[23²³](?!\.?[0-9,/])")  # m^2, cm3
_SENTENCE_END = re.compile(r"[.!](?=\s|\*|\"|$)|;(?=\s+(?!or\b|and\b)[A-Za-z]|\s*$)|(?<=[0-9]):(?=\s)")
_WORKING = re.compile(r"\s\([^()]*[0-9][^()]*\s[-+*/x×÷=]\s[^()]*\)[\s.]*\Z")  # 18 (9 eggs x $2)
_REMARK = re.compile(  # 540 (180 per day)
    r"(?<=[0-9A-Za-z%$])\s*\((?!(?:or|and|no|if)\b)"
    r"(?![^()]*\b(?:or|not|but|maybe|perhaps|possibly|negative|actually|wrong|incorrect|false|approx\w*|about|roughly|right|should|correct\w*)\b)(?=[^()]*[A-Za-z])[^()?]*\)[\s.]*\Z",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!](?=\s+[A-Z])")  # on the line of a marker, which may also hold "5!"
_WITH_UNITS = re.compile(  # 9 eggs * $2/egg = 18
    r"\s*[$0-9.]+(?:\s+[a-z]+)?\s*(?:[-+*/×÷]|(?<=\s)x(?=\s))(?:(?!\b(?:or|and|not)\b)[-+*/×÷.$0-9\sa-z])*=\s*(?=[$0-9])"
)
_BARE = re.compile(r"\s*#\s*%?\s*[A-Za-z]*\s*\.?\s*")
_RESTATES = re.compile(
    r"\s*#\s*%?(?:\s*(?!of\b|than\b|more\b|less\b|times\b|is\b|are\b|was\b|were\b)[A-Za-z/]+){0,4}[\s.!*,)]*"
)
_MAX_DIGITS = 64  # of one number: no answer is longer, and a gigantic one is an attack on the checker


def verify_number(gold: str, completion: str) -> Verdict:
    """Whether the final answer of a completion is the gold number.

    Args:
        gold: The gold number as text ("72", "-3", "1,234.5", "1/2").
        completion: The model's text.

    Raises:
        ValueError: `gold` is not a number: the data set is broken, not the completion.
    """
    expected = parse_number(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold!r} is not a number")
    return final_number(completion).verdict(expected)


def parse_number(text: str) -> Fraction | None:
    """The one number in a short text ("$1,234.50", "−3 apples", "3 1/2", "40%", "2 million", "1.5e-5"), or None.

    A percent sign is a unit: "40%" is 40.
    """
    return _only_number(readable(_GROUPING.sub(",", text))).value


def final_number(text: str) -> Final[Fraction]:
    """The number that a completion gives as its final answer."""
    text = re.sub(r"<<[^<>\n]*>>", "", text)  # the data set's calculator annotations
    return final_answer(_GROUPING.sub(",", text), _Numbers())


class _Numbers(Reader[Fraction]):
    """Reads one number in one place."""

    unusable = "not a usable number"
    unclosed = "no number in the final answer"

    def read(self, place: str, kind: str) -> Final[Fraction]:
        """The number in a place, with or without words by kind."""
        if kind == "chosen":
            return Final(None)  # "I pick 5 apples" is part of the reasoning
        place = MARKER.sub("", place, count=1) if kind == "line" and MARKER.match(place) else place
        if kind in ("line", "judged"):
            return _only_number(place) if _BARE.fullmatch(_NUMBER.sub("#", _plain(place))) else Final(None)
        if kind == "turned":
            numbers = [*_NUMBER.finditer(_plain(place))]
            return Final(_value(numbers[-1])) if numbers else Final(None, self.unusable if _WORDS.search(place) else "")
        if kind in ("back", "listed"):
            place = _until_reason(place, _SENTENCE_END)
            if _WORDS.match(place):
                return Final(None, self.unusable)
            return _only_number(place) if _RESTATES.fullmatch(_NUMBER.sub("#", _plain(place))) else Final(None)
        if kind == "hash" and (worked := _WITH_UNITS.match(place)):
            place = place[worked.end() :]
        if kind != "boxed":
            place = _until_reason(place, _SENTENCE_END if kind in ("said", "heading", "final") else _SENTENCE)
        if kind in ("said", "heading", "final") and not re.search("[0-9]", place):
            return Final(None, self.unusable if _WORDS.match(place) else "")  # "I hope this answer is helpful"
        return _only_number(place)


def _until_reason(place: str, end: re.Pattern[str]) -> str:
    for pattern in (end, BECAUSE, _WORKING, _REMARK):
        if (found := pattern.search(place)) and (pattern is not _REMARK or _DIGITS.search(place, 0, found.start())):
            place = place[: found.start()]
    return place


def _only_number(place: str) -> Final[Fraction]:
    """The number in a place where only one may stand."""
    plain = _plain(place)
    head, equals, tail = plain.rpartition("=")
    # "6 * 12 = 72" states one answer; "x = 71, y = 72" states two.
    if equals and re.fullmatch(r"[-+*/x×÷().%0-9\s=]*(?:,[0-9]{3}[-+*/x×÷().%0-9\s=]*)*(?<!=/)", head):
        plain = tail
    matches = list(_NUMBER.finditer(plain))
    if not matches:
        return Final(None, "no number in the final answer")
    first = matches[0]
    value = _value(first)
    before, after = plain[: first.start()], plain[first.end() :]
    if len(matches) > 1:
        again = matches[1]
        rest = plain[first.end() : again.start()] + "#" + plain[again.end() :]
        if len(matches) > 2 or _value(again) != value or not _RESTATED.fullmatch(rest.rstrip()):
            return Final(None, "several answers")
    if value is None or re.search(r"\bnot\b|n't\b|≠", plain, re.IGNORECASE) or _is_unfinished(before, first, after):
        return Final(None, "not a usable number")
    return Final(value)


def _is_unfinished(before: str, number: re.Match[str], after: str) -> bool:
    """Whether what stands around a lone number makes it a term, a bound or a guess instead of an answer."""
    near = before.rpartition("=")[2]  # "x + y = 5" is 5
    tail = near[-80:]
    if number["sign"] and number["sign"][0] == "+" and re.search(r"[A-Za-z)]\s?\Z", tail):
        return True  # "x + 5"
    if _BEFORE.search(tail.rstrip() + (" " if tail[-1:].isspace() else "")) or _HEDGE.search(before):
        return True
    if re.match(r"\*+\s*\Z", after):  # the end of "*5*", whose start is not part of the place
        after = ""
    if _AFTER.match(after) or _MORE.match(after) or _CHANGED.search(after):
        return True
    return any(
        c in "<>~?^·‰\\❌✗✘"
        or ("\u0391" <= c <= "\u03c9" and c not in "μΩ")
        or (not c.isascii() and (c.isnumeric() or unicodedata.category(c) == "Sm"))
        for c in near + after
    )


def _plain(text: str) -> str:
    """A place without LaTeX, Markdown, currency signs and exponents of units."""
    if "\\" in text:
        text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2 ", text)
        text = re.sub(r"\\[dt]?frac\s*([0-9])\s*([0-9])", r" \1/\2 ", text)
        text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
        text = re.sub(r"\\times|\\cdot|\\div", "*", text)
        text = _DEGREES.sub(" ", text)
    text = _TIMES_A_POWER.sub(lambda m: f"e{(m['bare'] or m['closed'] or m['raised']).translate(_RAISED)}", text)
    text = _CONTINENTAL.sub(lambda m: m[0].replace(".", "").replace(",", "."), text)
    text = _DOLLARS.sub(" ", text)
    text = _DECORATION.sub(_undecorated, text)
    return _UNIT_EXPONENT.sub("", text)


def _undecorated(match: re.Match[str]) -> str:
    """Nothing, but for a space where its loss would join two words or digits: "5**5", "A$18"."""
    text, start, end = match.string, match.start(), match.end()
    joins = start > 0 and end < len(text) and text[start - 1].isalnum() and text[end].isalnum()
    return " " if joins else ""


def _value(match: re.Match[str]) -> Fraction | None:
    if sum(c.isdigit() for c in match.group()) > _MAX_DIGITS:
        return None
    value = Fraction(match["top"].replace(",", "")) * Fraction(10) ** int(match["power"] or 0)
    if match["bottom"]:
        bottom = Fraction(match["bottom"].replace(",", ""))
        if bottom == 0:
            return None
        value /= bottom
    if match["whole"]:
        value += int(match["whole"])
    if match["scale"]:
        value *= _THOUSANDS[match["scale"].strip().lower().removesuffix("s")]
    return -value if (match["sign"] or "").startswith("-") else value
