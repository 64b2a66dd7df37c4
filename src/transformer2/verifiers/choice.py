r"""Choices: is the one option that a completion ends on the gold one?

An option is named by its letter ("B", "(B)", "B. plant cells") or by its whole text ("plant cells"); where the data set
numbers its options, the number names it too. What counts as the final answer, in this order:

1. the last statement: `\boxed{B}`, `#### B`, "the answer is (B)", "answer: B", "B is the correct answer";
2. a last line that is nothing but an option, where no other option stands alone on a line after the last statement;
3. a first line that is nothing but an option, where nothing else is stated.

An option in the reasoning never counts. Several options, a letter with the text of another option, a letter that is not
among the options, "not B", "B or C", "maybe B", an unfinished "(B" and an unfinished text are refused, whichever is
right: no verdict is a guess. Letters are capitals or stand in brackets: "a" is an article, and so is "A" before a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformer2.types import Verdict

__all__ = ["FinalChoice", "final_choice", "verify_choice"]

_MARKER = re.compile(
    r"(?P<hash>(?<!#)####(?!#))|(?P<boxed>\\f?boxed\s*\{)"
    r"|^[ \t>*#]*(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer[ \t*]*\n"  # a heading
    r"|(?:\bthe\s+)?(?:\b(?:correct|final|right|best)\s+(?:answer|option|choice)"
    r"|(?<!\bwrong )(?<!\bincorrect )(?<!\bother )\banswer)\b"
    r"(?:\s+(?:to|for|of|here)\b[^.:\n]{0,80}?)?[\s*]*(?:\b(?:is|would be|must be|should be)\b\s*:?|:|=)",
    re.IGNORECASE | re.MULTILINE,
)
_DENIED = re.compile(
    r"(?:(?:\bnot|n't|n’t|\bnever)\s+(?:think|believe|say|mean)|\b(?:if|whether|unless|doubt|suppose))\s+"
    r"(?:that\s+)?\Z",
    re.IGNORECASE,
)
# "B is the correct answer.": a sentence of its own, so that no "not", "if" or "neither A nor" can stand before it.
_REVERSED = re.compile(
    r"(?:^|(?<=[.!?:]\s))[ \t>*]*(?i:(?:so|therefore|thus|hence)\b,?\s+)?(?i:(?:the\s+)?(?:option|choice|answer)\s+)?"
    r"(?:\((?P<inner>[A-Za-z0-9])\)|(?P<bare>[A-Z0-9]))\s+is\s+(?:therefore\s+)?(?:the\s+)?"
    r"(?:(?:most\s+likely\s+)?(?:correct|right|best)(?:\s+(?:answer|option|choice))?|answer)\s*(?:[.!*]|$)",
    re.MULTILINE,
)
_FILLER = re.compile(
    r"(?:(?:therefore|thus|clearly|definitely|indeed|most likely|the|option|choice|letter|number)\b[\s:,]*)+",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[(\[]\s*(?P<inner>[A-Za-z0-9])\s*[)\]]|(?P<bare>[A-Z0-9])(?![\w’]|['-]\w|[.,]\d)")
_SEPARATOR = re.compile(r"\s*[.:,;)\u2010-\u2015=-]+\s*|\s+")
_BECAUSE = re.compile(r"[\s,;]*(?:because|since|due to)\b", re.IGNORECASE)
_NEXT_SENTENCE = re.compile(r"[.!]\)?\s+(?=[A-Z])")
_GOES_ON = re.compile(r"(?:or|and|not|nor|but|maybe|perhaps|no|wait|also)\b", re.IGNORECASE)
_ALSO = re.compile(r"[\s$)*.]*(?:,|/|;|&|\bor\b|\band\b)[\s$(*\\]*(?:boxed\s*\{)?(?:[A-Z0-9]\b)")
_LETTER = re.compile(r"\b[A-HJ-Z]\b|\([a-z]\)")  # "I" is a word
_DECORATION = re.compile(r"\*+|__|[`$\"“”{}]|\\[()\[\],;! ]|\\(?:text|mathrm|mathbf|textbf|mathit)\b")
_BRACE = re.compile(r"[{}]")
_SPACE = re.compile(r"\s+")
_CONJUNCTION = re.compile(r"[\s,;]*\b(?:or|and|so)\s*\Z", re.IGNORECASE)
_MAX_PLACE = 1000  # characters looked at after a marker: no option is longer


@dataclass(frozen=True)
class FinalChoice:
    """What a text ends on.

    Attributes:
        label: The letter of the option; None when there is none, or more than one.
        reason: "" with a label, else why there is none.
    """

    label: str | None
    reason: str = ""


@dataclass(frozen=True)
class _Stated:
    """A place that states an answer, from `start` to `stop`; `bare` when nothing but the option stands there."""

    start: int
    stop: int
    label: str | None
    bare: bool = True


def verify_choice(
    gold: str, options: Mapping[str, str], completion: str, keys: Mapping[str, str] | None = None
) -> Verdict:
    """Whether the final answer of a completion is the gold option.

    Args:
        gold: Letter of the right option.
        options: Letter -> text of every option.
        completion: The model's text.
        keys: Other names of options: number -> letter.

    Raises:
        ValueError: `gold` is no option: the data set is broken, not the completion.
    """
    if gold not in options:
        raise ValueError(f"gold answer {gold!r} is not among the options {', '.join(options)}")
    choice = final_choice(options, completion, keys)
    if choice.label is None:
        return Verdict.of(False, None, choice.reason)
    correct = choice.label == gold
    return Verdict.of(correct, choice.label, "equal" if correct else f"expected {gold}")


def final_choice(options: Mapping[str, str], text: str, keys: Mapping[str, str] | None = None) -> FinalChoice:
    """The option that a completion gives as its final answer; arguments as in `verify_choice`."""
    reader = _Reader(options, keys or {})
    stated = _statements(reader, text)
    after = stated[-1].stop if stated else 0
    alone = [line for line in _lines(reader, text) if line.start >= after]
    labels = {line.label for line in alone if line.label is not None}
    if not stated:
        ends = alone and (alone[0].label, alone[-1].label) != (None, None)
        if not ends or not labels:
            return FinalChoice(None, "no final answer")
        return FinalChoice(labels.pop()) if len(labels) == 1 else FinalChoice(None, "several answers")
    last = stated[-1]
    if last.label is None:
        return FinalChoice(None, "not a usable choice")
    before = stated[-2] if len(stated) > 1 else last
    if before.bare and before.label != last.label and _is_listing(text[before.stop : last.start]):
        return FinalChoice(None, "several answers")
    if labels - {last.label}:
        # A change of mind is one other option on the last line, with words before it; anything else is a list.
        words = any(line.label is None for line in alone[:-1])
        if len(labels) > 1 or alone[-1].label is None or not words:
            return FinalChoice(None, "several answers")
        return FinalChoice(alone[-1].label)
    return FinalChoice(last.label)


def _statements(reader: _Reader, text: str) -> list[_Stated]:
    """Every place that states an answer, in order; those that speak of no option at all are left out."""
    markers = list(_MARKER.finditer(text))
    found = [_Stated(m.start(), m.end(), reader.letter(m)) for m in _REVERSED.finditer(text)]
    for marker, following in zip(markers, [*markers[1:], None], strict=False):
        limit = following.start() if following else len(text)
        if marker["boxed"]:
            stop = _closing_brace(text, marker.end())
            label = None if stop is None or _ALSO.match(text, stop + 1) else reader.read(text[marker.end() : stop])
            found.append(_Stated(marker.start(), marker.end() if stop is None else stop + 1, label))
            continue
        start = marker.end()
        while start < limit and (text[start].isspace() or text[start] in "*:"):
            start += 1
        end = text.find("\n", start, limit)
        stop = min(limit if end < 0 else end, start + _MAX_PLACE)
        place = _CONJUNCTION.sub("", text[start:stop]) if following else text[start:stop]
        denied = _DENIED.search(text, max(0, marker.start() - 60), marker.start())
        label = None if denied else reader.read(place)
        if label is not None or reader.speaks_of_an_option(place):
            found.append(_Stated(marker.start(), stop, label, bare=reader.read(place, whole=True) is not None))
    return sorted(found, key=lambda s: s.start)


def _lines(reader: _Reader, text: str) -> list[_Stated]:
    """The lines that are not blank, with the option that stands alone on them, if one does."""
    lines, start = [], 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            label = reader.read(line, whole=True) if len(line) <= _MAX_PLACE else None
            lines.append(_Stated(start, start + len(line), label))
        start += len(line)
    return lines


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, start, start + _MAX_PLACE):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.start()
    return None


def _is_listing(between: str) -> bool:
    """Whether two answers with this text between them are one list of answers."""
    return between.strip(" \t\n,;.*$").lower() in {"", "or", "and", "/", "|"}


class _Reader:
    """Reads one place: a label, a text, or both of the same option.

    Args:
        options: Letter -> text.
        keys: Number -> letter.
    """

    def __init__(self, options: Mapping[str, str], keys: Mapping[str, str]) -> None:
        self.letters = {**{letter: letter for letter in options}, **keys}
        texts = {letter: plain for letter, text in options.items() if (plain := _plain(text).rstrip(".! "))}
        # Case matters only where it tells two options apart: "Rr" and "rr".
        self.fold = len({text.lower() for text in texts.values()}) == len(texts)
        self.texts = {letter: self._case(text) for letter, text in texts.items()}

    def letter(self, label: re.Match[str]) -> str | None:
        """The letter of the option that a label names by letter or number."""
        return self.letters.get((label["inner"] or label["bare"]).upper())

    def read(self, place: str, whole: bool = False) -> str | None:
        """The one option that a place names, else None.

        Args:
            place: The text.
            whole: Nothing else may stand there; otherwise a reason or a further sentence may follow.
        """
        plain = _plain(place)
        filler = _FILLER.match(plain)
        starts = {plain, plain[filler.end() :] if filler else plain}
        found = {letter for start in starts for letter in (self._by_label(start, whole), self._by_text(start, whole))}
        found.discard(None)
        return found.pop() if len(found) == 1 else None

    def speaks_of_an_option(self, place: str) -> bool:
        """Whether a place that names no single option has anything to do with options."""
        plain = _plain(place)
        if _LETTER.search(plain) or any(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", plain) for n in self.letters):
            return True
        return any(text in self._case(plain) for text in self.texts.values())

    def _by_label(self, plain: str, whole: bool) -> str | None:
        match = _LABEL.match(plain)
        letter = self.letter(match) if match else None
        if match is None or letter is None:
            return None
        rest = plain[match.end() :]
        if self._is_over(rest, whole):
            return letter
        separator = _SEPARATOR.match(rest)
        after = rest[separator.end() :] if separator else ""
        if separator is None or (separator.group().isspace() and not match["inner"] and after[:1] != "("):
            return None  # "A plant": an article
        after = after.removeprefix("(")
        text = self.texts.get(letter)
        if text and self._case(after).startswith(text) and self._is_over(after[len(text) :], whole):
            return letter
        return None

    def _by_text(self, plain: str, whole: bool) -> str | None:
        fits = [letter for letter, text in self.texts.items() if self._case(plain).startswith(text)]
        for letter in sorted(fits, key=lambda letter: -len(self.texts[letter])):
            rest = plain[len(self.texts[letter]) :]
            label = _LABEL.match(rest.lstrip())
            if label and label["inner"] and self.letter(label) == letter:
                rest = rest.lstrip()[label.end() :]
            if self._is_over(rest, whole):
                return letter
        return None

    def _is_over(self, rest: str, whole: bool) -> bool:
        """Whether nothing follows an option that could change it."""
        if not rest.strip(" .,;!)]"):
            return True
        if whole:
            return False
        if _BECAUSE.match(rest):
            return not self._begins_with_a_text(rest.lstrip(" ,;"))  # "(B) because ..." may be the text of another
        sentence = _NEXT_SENTENCE.match(rest)
        if sentence is None:
            return False
        following = rest[sentence.end() :]
        label = _LABEL.match(following)
        named = label is not None and not following[label.end() :].lstrip()[:1].islower()
        return not (named or self._begins_with_a_text(following) or _GOES_ON.match(following))

    def _begins_with_a_text(self, place: str) -> bool:
        place = self._case(place)
        return any(place.startswith(text) and not place[len(text) :][:1].isalnum() for text in self.texts.values())

    def _case(self, text: str) -> str:
        return text.lower() if self.fold else text


def _plain(text: str) -> str:
    """A place without Markdown, LaTeX and quotation marks, with single spaces."""
    return _SPACE.sub(" ", _DECORATION.sub(" ", text)).strip(" '‘’")
