r"""Numeric answers: is the one number that a completion ends on equal to the gold one?

What counts as the final answer, in this order:

1. the last marker: `#### N`, `\boxed{N}`, or "the answer is N" / "answer: N";
2. a last line that is nothing but a number with its unit, where no `####` or `\boxed` stands and no words come later.

A number in the reasoning never counts, and neither does a choice of numbers: when the final place lists several, the
completion is refused, whichever of them is right, and so is a sum or a guess that nobody worked out ("5 + 5", "5!",
"> 18", "maybe 18", "A18"). Values are compared exactly, as fractions.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from transformer2.types import Verdict

__all__ = ["FinalAnswer", "final_number", "parse_number", "verify_number"]

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
_DIGITS = re.compile("[0-9]")
_THOUSANDS = {"hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![0-9A-Za-z)])[-+]\s*)?(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?(?P<top>{_UNSIGNED})"
    rf"(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?"
    r"(?P<scale>[kK]\b|\s*(?:hundred|thousand|million|billion|trillion)\b)?",
    re.IGNORECASE,
)
_MARKER = re.compile(
    r"(?P<hash>(?<!#)####(?!#))|(?P<boxed>\\(?:boxed|fbox)\s*\{)"
    r"|(?P<said>\banswer(?:[\s*]*(?:is\b\s*:?|:|=)|[ \t*]*\n))",
    re.IGNORECASE,
)
_GROUPING = re.compile(r"(?<=[0-9])(?:\{,\}|\\,|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
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
    r"\b(?:no|nor|never|neither|maybe|perhaps|possibly|probably|might|could|at (?:least|most)|up to|than|about|around"
    r"|approx|approximately|roughly|nearly|almost|minus|negative|plus|twice|thrice|double|triple|half|root|sqrt|log|ln"
    r"|(?:square|cube|third|quarter|factorial) of)\b|[<>~!]\s?=",
    re.IGNORECASE,
)
# After it: an operator, a variable (but not the letter of a unit), or a word that changes the value.
_AFTER = re.compile(
    r"(?!\s+a\b)[\s)\]]*+(?:[+*^!|]|-(?![A-Za-z]{2,})|/(?!\s*(?:[A-Za-z]{2,}|h\b))|(?![gmhsldcptLCFWVJN]\b)[A-Za-z]\b)"
)
_CHANGED = re.compile(
    r"\b(?:or|plus|minus|squared|cubed|factorial|choose|doubled|tripled|half|to the power|at (?:least|most))\b",
    re.IGNORECASE,
)
_UNIT_EXPONENT = re.compile(r"(?<=[A-Za-z])(?<![0-9][eE])(?:\s*\^)?[23²³](?!\.?[0-9,/])")  # m^2, cm3
_BRACE = re.compile(r"[{}]")
_LINE_END = re.compile(r"\n")
_SENTENCE_END = re.compile(r"[.!?;](?=\s|\*|\"|$)|\n")
_ALSO = re.compile(r"[\s$)*]*(?:,|/|\bor\b|\band\b)[\s\\(*$]*[-+]?\.?[0-9]", re.IGNORECASE)
_MAX_BOX = 512  # characters of a box: beyond it nobody gives one number
_MAX_DIGITS = 64  # of one number: no answer is longer, and a gigantic one is an attack on the checker


@dataclass(frozen=True)
class FinalAnswer:
    """What a text ends on.

    Attributes:
        value: The number; None when there is none, or more than one.
        text: The place it was read from; None when there is no such place.
        reason: "" with a value, else why there is none.
    """

    value: Fraction | None
    text: str | None
    reason: str = ""


def verify_number(gold: str, completion: str) -> Verdict:
    """Whether the final answer of a completion is the gold number.

    Args:
        gold: The gold number as text ("72", "-3", "1,234.5", "1/2").
        completion: The model's text.

    Raises:
        ValueError: `gold` is no number: the data set is broken, not the completion.
    """
    expected = parse_number(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold!r} is not a number")
    answer = final_number(completion)
    if answer.value is None:
        return Verdict.of(False, None, answer.reason)
    correct = answer.value == expected
    return Verdict.of(correct, str(answer.value), "equal" if correct else f"expected {expected}")


def parse_number(text: str) -> Fraction | None:
    """The one number in a short text ("$1,234.50", "−3 apples", "3 1/2", "40%", "2 million"), or None.

    A percent sign is a unit: "40%" is 40.
    """
    return _only_number(text).value


def final_number(text: str) -> FinalAnswer:
    """The number that a completion gives as its final answer."""
    text = re.sub(r"<<[^<>\n]*>>", "", text).translate(_DASHES)  # the data set's calculator annotations
    markers = list(_MARKER.finditer(text))
    answers: list[tuple[int, int, FinalAnswer]] = []  # (start of the marker, end of the place, what stands there)
    softly = False  # the last marker is mere words
    for marker, following in zip(markers, [*markers[1:], None], strict=False):
        limit = following.start() if following else len(text)
        start, stop = _place(text, marker, limit)
        answer = _only_number(text[start:stop])
        if answer.value is not None and marker["boxed"] and _ALSO.match(text, min(stop + 1, len(text)), limit):
            answer = FinalAnswer(None, text[start:stop], "several answers")
        # "I hope this answer is helpful", a heading, or a marker that another one follows at once: no answer yet.
        if answer.value is None and not _DIGITS.search(text[start:stop]):
            if marker["said"] or (following and not text[start:limit].strip(" \t\n*:$\\([")):
                continue
            if marker["hash"] and following:
                continue
        answers.append((marker.start(), stop, answer))
        softly = marker["said"] is not None
    if not answers or (softly and _last_line(text[answers[-1][1] :]).value is not None):
        return _last_line(text)
    _, _, last = answers[-1]
    if len(answers) > 1 and last.value is not None:
        (_, before_stop, before), (start, _, _) = answers[-2:]
        other = before.value not in (None, last.value) or re.search(r"\bor\b", before.text or "", re.IGNORECASE)
        if other and _is_listing(text[before_stop + 1 : start]):
            return FinalAnswer(None, text[answers[-2][0] :], "several answers")
    return last


def _is_listing(between: str) -> bool:
    """Whether two answers with this text between them are one list of answers."""
    return between.strip(" \t\n,;.*$").lower() in {"", "or", "and", "/", "|"}


def _place(text: str, marker: re.Match[str], limit: int) -> tuple[int, int]:
    """Where the answer of a marker starts and stops: its braces, its line, or its sentence."""
    start = marker.end()
    if marker["boxed"]:
        depth = 1
        for brace in _BRACE.finditer(text, start, start + _MAX_BOX):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                return start, brace.start()
        return start, start  # never closed, or no answer any more
    while start < limit and (text[start].isspace() or text[start] in "*:"):
        start += 1
    end = (_LINE_END if marker["hash"] else _SENTENCE_END).search(text, start, limit)
    return start, end.start() if end else limit


def _last_line(text: str) -> FinalAnswer:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    values = [_only_number(line) if _is_bare(line) else FinalAnswer(None, None) for line in lines[-2:]]
    if not values or values[-1].value is None:
        return FinalAnswer(None, None, "no final answer")
    if len(values) == 2 and values[0].value not in (None, values[1].value):
        return FinalAnswer(None, "\n".join(lines[-2:]), "several answers")
    return values[-1]


def _is_bare(line: str) -> bool:
    """Whether a line is a number with at most one word of unit: "72", "**$1,200.**", "18 dollars"."""
    left, count = _NUMBER.subn("#", _plain(line))
    return count == 1 and re.fullmatch(r"\s*#\s*%?\s*[A-Za-z]*\s*\.?\s*", left) is not None


def _only_number(place: str) -> FinalAnswer:
    """The number in a place where only one may stand."""
    plain = _plain(place)
    head, equals, tail = plain.rpartition("=")
    # "6 * 12 = 72" states one answer; "x = 71, y = 72" states two.
    if equals and re.fullmatch(r"[-+*/x×÷().%0-9\s=]*(?:,[0-9]{3}[-+*/x×÷().%0-9\s=]*)*", head):
        plain = tail
    matches = list(_NUMBER.finditer(plain))
    if not matches:
        return FinalAnswer(None, place, "no number in the final answer")
    first = matches[0]
    value = _value(first)
    before, after = plain[: first.start()], plain[first.end() :]
    if len(matches) > 1:
        again = matches[1]
        rest = plain[first.end() : again.start()] + "#" + plain[again.end() :]
        if len(matches) > 2 or _value(again) != value or not _RESTATED.fullmatch(rest.rstrip()):
            return FinalAnswer(None, place, "several answers")
    if value is None or re.search(r"\bnot\b|n't\b|≠", plain, re.IGNORECASE) or _is_unfinished(before, first, after):
        return FinalAnswer(None, place, "not a usable number")
    return FinalAnswer(value, place)


def _is_unfinished(before: str, number: re.Match[str], after: str) -> bool:
    """Whether what stands around a lone number makes it a term, a bound or a guess instead of an answer."""
    near = before.rpartition("=")[2]  # "x + y = 5" is 5
    tail = near[-80:]
    if number["sign"] and number["sign"][0] == "+" and re.search(r"[A-Za-z)]\s?\Z", tail):
        return True  # "x + 5"
    if _BEFORE.search(tail.rstrip() + (" " if tail[-1:].isspace() else "")) or _HEDGE.search(before):
        return True
    if re.match(r"\s*\*+\s*\Z", after):  # the end of "*5*", whose start is no part of the place
        after = "" if after[0] == "*" else after
    if _AFTER.match(after) or _CHANGED.search(after):
        return True
    return any(
        c in "<>~?^·‰\\" or (not c.isascii() and (c.isnumeric() or unicodedata.category(c) == "Sm"))
        for c in near + after
    )


def _plain(text: str) -> str:
    """A place without LaTeX, Markdown, currency signs and exponents of units."""
    text = text.translate(_DASHES)
    if "\\" in text:
        text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2 ", text)
        text = re.sub(r"\\[dt]?frac\s*([0-9])\s*([0-9])", r" \1/\2 ", text)
        text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
        text = re.sub(r"\\times|\\cdot|\\div", "*", text)
        text = _DEGREES.sub(" ", text)
    text = _GROUPING.sub(",", text)
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
    value = Fraction(match["top"].replace(",", ""))
    if match["bottom"]:
        bottom = Fraction(match["bottom"].replace(",", ""))
        if bottom == 0:
            return None
        value /= bottom
    if match["whole"]:
        value += int(match["whole"])
    if match["scale"]:
        value *= _THOUSANDS[match["scale"].strip().lower()]
    return -value if (match["sign"] or "").startswith("-") else value
