r"""Final answers: what does a completion end on, whatever its answers are made of?

    statements       `\boxed{18}`, `#### 18`, "the answer is 18", "answer: 18", "18 is the correct answer"
    lines            a last line that is nothing but an answer
    second thoughts  "Wait, no" and "that's wrong" take a statement back, "Actually, it's 20" replaces it, "Yes, that's
                     right" restores it; "not 18", "18 is wrong" and "18 is extraneous" state nothing

The last statement counts, up to its reason ("18 because 9 x 2 = 18"). Statements side by side are a list, which is an
answer only for a reader that takes lists (mathematics); for a strict reader (letters) any two that differ without a
second thought between them are none. A text that says two things in the end says neither, whichever is right.

What an answer looks like, `numeric`, `choice` and `math.final` say: they read one place at a time. How people word all
that stands in `phrases`. Time is linear in the text: places have a longest length.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

from transformer2.types import Verdict
from transformer2.verifiers import phrases
from transformer2.verifiers.boxes import argument, closing_braces

__all__ = ["Final", "Reader", "final_answer", "readable", "without_reasoning"]

T = TypeVar("T", bound=Hashable)

MAX_TEXT = 100_000  # characters from the end of a completion
MAX_PLACE = 1000  # characters of one place: no answer is longer
_READABLE = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63"), "-")
    | dict.fromkeys(map(ord, "“”„‟«»‹›「」『』"), '"')
    | dict.fromkeys(map(ord, "‘’‚‛"), "'")
    | {ord(c): plain for c, plain in zip("。、【】〔〕\u3000\u00a0", ".,[][]  ", strict=True)}
)


@dataclass(frozen=True)
class Final(Generic[T]):
    """What a place, or a whole text, gives as its answer.

    Attributes:
        value: The answer; None when there is none, or more than one.
        reason: Why there is none; "" with a value, and for a place that has nothing to do with an answer.
    """

    value: T | None
    reason: str = ""

    def verdict(self, gold: T) -> Verdict:
        """Right where it is the gold answer."""
        if self.value is None:
            return Verdict.of(False, None, self.reason)
        correct = self.value == gold
        return Verdict.of(correct, str(self.value), "equal" if correct else f"expected {gold}")


class Reader(ABC, Generic[T]):
    """Reads the answer in one place.

    Attributes:
        strict: Whether two statements that differ are no answer, however far apart.
        unusable: Reason for a place that denies or doubts.
        unclosed: Reason for a box that is cut off.
        listed: Reason for a box that another answer follows.
    """

    strict: ClassVar[bool] = False
    unusable: ClassVar[str]
    unclosed: ClassVar[str]
    listed: ClassVar[str] = "several answers"

    @abstractmethod
    def read(self, place: str, kind: str) -> Final[T]:
        """The answer in a place: hash, boxed, said, heading, final, chosen, back (a second thought), listed (behind a
        box), turned (any other answer in the sentence), closes (one at its end), concludes (a sentence without marks),
        judged, line, or first (line)."""

    def begins(self, place: str) -> bool:
        """Whether a place begins with the words of an answer, which are then no words about it."""
        return False

    def joined(self, answers: Sequence[T]) -> T | None:
        """The one answer that a list of several is, if it is one."""
        return None


@dataclass(frozen=True)
class _Step(Generic[T]):
    start: int
    stop: int
    role: str  # stated, denied, withdrawn, changed, replaced, kept, or also
    kind: str
    answer: Final[T]


def without_reasoning(text: str) -> str:
    """A text without the reasoning (`<think>`) that precedes its answer."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def readable(text: str) -> str:
    """A text without its reasoning, and with full-width and typographic characters in their plain forms."""
    return without_reasoning(text).translate(_READABLE)


def final_answer(text: str, reader: Reader[T]) -> Final[T]:
    """The answer that a completion gives in the end."""
    text = readable(text)[-MAX_TEXT:]
    steps = [*_statements(text, reader), *_judgements(text, reader)]
    steps += _lines(text, reader, any(step.role == "stated" for step in steps))
    now, taken_back, reason = None, None, "no final answer"
    given: list[T] = []  # since the last second thought; for a reader that is not strict, side by side
    listed: list[T] = []  # what `now` is made of
    last: _Step[T] | None = None  # statement
    before: _Step[T] | None = None
    for step in sorted(steps, key=lambda s: s.start):
        value, role = step.answer.value, step.role
        if last and before and before.kind == "joins" and not text[before.stop : step.start].strip(" $(*\\["):
            role = "also"  # "or maybe \\boxed{6}"
        before = step
        if role == "stated":
            if step.kind == "hash" and phrases.A_HEADING.fullmatch(text[step.start + 4 : step.stop]):
                continue
            marked = last is not None and last.kind in ("hash", "boxed") and not reader.strict
            if marked and step.kind == "line" and reason != "taken back":
                continue  # behind a marked number the text continues with something else
            if not reader.strict and not (last and phrases.is_list(text[last.stop : step.start], last.kind, step.kind)):
                given = []
            given += [value] if value is not None and value not in given else []
            now = value if len(given) == 1 or value is None else reader.joined(given)
            reason, last, listed = step.answer.reason or "several answers", step, given.copy()
        elif role == "denied":
            given = [other for other in given if other != value]  # for what is stated later
            if now is not None and value in listed and len(listed) > 1:
                listed.remove(value)
                now = listed[0] if len(listed) == 1 else reader.joined(listed)
            elif value is not None and value == now:
                taken_back, now, reason, given = None, None, "taken back", []
            elif last is None and step.kind in ("said", "heading", "final", "boxed"):
                reason = reader.unusable
        elif last is None and not (
            role == "replaced" or (role == "changed" and value is not None and reason == reader.unusable)
        ):
            continue  # but "the answer is not 6, rather 5" says 5
        elif role == "kept":
            now = taken_back if reason == "taken back" else now
        elif role == "also":
            if value is not None and now not in (None, value):
                now, reason = None, "several answers"
        else:
            given = []
            if role == "withdrawn" and now is not None:
                taken_back, now, reason = now, None, "taken back"
            if value is not None:
                now, given, listed = value, [value], [value]
            elif step.answer.reason and now is not None:
                now, reason = None, step.answer.reason
            last = step if role == "replaced" else last
    return Final(now) if now is not None else Final(None, reason)


def _statements(text: str, reader: Reader[T]) -> Iterator[_Step[T]]:
    """What is stated, and second thoughts, in order."""
    marks = [m for m in phrases.STATED.finditer(text) if reader.strict or not m["so"]]
    marks += [m for m in phrases.SECOND_THOUGHT.finditer(text) if not reader.begins(_rest(text, m.start(), len(text)))]
    marks.sort(key=re.Match.start)
    marks = [  # "The answer is: so it can be done" is one statement
        m for i, m in enumerate(marks) if m.lastgroup != "so" or not i or text[marks[i - 1].end() : m.start()].strip()
    ]
    ends = closing_braces(text)
    for mark, following in zip(marks, [*marks[1:], None], strict=False):
        limit = following.start() if following else len(text)
        step: _Step[T] | None
        if mark.re is phrases.SECOND_THOUGHT:
            step = _thought(text, mark, limit, reader)
        elif mark["boxed"]:
            step = _boxed(text, mark, ends, reader)
        else:
            step = _said(text, mark, limit, reader)
        if step and (step.role not in ("stated", "denied") or step.answer != Final(None)):
            yield step


def _boxed(text: str, mark: re.Match[str], ends: dict[int, int], reader: Reader[T]) -> _Step[T]:
    span = argument(text, mark.end(), ends)
    if span is None:
        return _Step(mark.start(), mark.end(), "stated", "boxed", Final(None, reader.unclosed))
    stop = span[1] + (text[span[1] : span[1] + 1] == "}")
    answer = reader.read(text[slice(*span)], "boxed")
    before, also = text[max(0, mark.start() - 100) : mark.start()], phrases.LISTED.match(text, stop)
    said = phrases.BOX_STATED.search(before)
    supposed = phrases.SUPPOSED.search(_words_before(text, mark.start() - len(said[0] if said else "")))
    asked = phrases.ASKED.match(text, stop) or (supposed and not supposed["denied"])
    if asked or supposed or phrases.BOX_DENIED.search(before):
        return _Step(mark.start(), stop, "denied", "boxed", Final(None, "supposed") if asked else answer)
    if phrases.PART_BEFORE.search(phrases.MARKUP.sub("", before)) or phrases.PART_AFTER.match(text, stop):
        answer = Final(None, "the box holds a part of an answer")
    elif (other := phrases.OR_BEFORE.search(before)) and answer.value is not None:
        # "72/6 or \\boxed{12}", "x = 6 or x = \\boxed{5}" are lists as well, "2x = 10 or x = \\boxed{5}" is an argument
        name, equals, side = other[1].strip("$\\() ").partition("=")
        alike = not equals or (len(name.strip()) == 1 and name.strip() == (other["name"] or name).strip(" ="))
        first = reader.read(side if equals else other[1], "boxed").value if alike else None
        if first not in (None, answer.value):
            both = reader.joined([first, answer.value])
            answer = Final(both, "" if both is not None else "several answers")
    elif also:
        another = reader.read(_rest(text, also.end(), also.end() + 200), "listed" if also["comma"] else "back")
        answer = answer if another.value is None else Final(None, reader.listed)
    return _Step(mark.start(), stop, "stated", "boxed", answer)


def _said(text: str, mark: re.Match[str], limit: int, reader: Reader[T]) -> _Step[T] | None:
    """What stands behind a mark, up to the next one: "the answer is not 17, it is 18" says 18."""
    kind, start = mark.lastgroup or "", mark.end()
    before = _words_before(text, mark.start())
    if kind == "said" and phrases.NO_ANSWER.search(before):
        return None
    start = phrases.OPENING.match(text, start, limit).end()  # type: ignore[union-attr]  # it matches nothing as well
    line = text.rfind("\n", mark.start(), start) + 1
    if marker := phrases.MARKER.match(text, line, limit) if line else None:
        start = marker.end()
    place = _rest(text, start, limit).partition("</answer>")[0]
    stop = start + len(place)
    if kind == "so":
        return _Step(mark.start(), stop, "stated", kind, reader.read(place, "judged"))
    if kind in ("said", "tag"):
        kind = "heading" if mark.group().endswith((":", "=")) else "said"
    place = phrases.CONJUNCTION.sub("", place) if limit < len(text) else place
    answer = reader.read(place, kind)
    if marker and (item := phrases.MARKER.match(text, stop + 1)):  # "1. 72" and then "2. 80"
        another = reader.read(_rest(text, item.end(), len(text)), kind).value
        answer = answer if another in (None, answer.value) else Final(None, "several answers")
    if mark.group().rstrip().endswith("n't"):  # "the answer isn't 6 but 5"
        answer = _later(place, reader)
        return _Step(mark.start(), stop, "stated", kind, answer) if answer.value is not None else None
    denied = phrases.NOT.match(place) if answer.value is None else None
    if denied and (later := _later(place, reader)).value is not None:
        answer, denied = later, None
    elif denied:
        answer = reader.read(place[denied.end() :], kind)
    supposed = phrases.SUPPOSED.search(before)
    if supposed and not supposed["denied"]:
        answer = Final(None, answer.reason or "supposed")
    return _Step(mark.start(), stop, "denied" if supposed or denied else "stated", kind, answer)


def _thought(text: str, mark: re.Match[str], limit: int, reader: Reader[T]) -> _Step[T]:
    """A second thought with the answer that it gives: "I misread it; it is 18"."""
    role = {"turned": "changed", "more": "also"}.get(mark.lastgroup or "", mark.lastgroup or "")
    start = phrases.FILLER.match(text, mark.end(), limit).end()  # type: ignore[union-attr]  # it matches nothing as well
    place = _rest(text, start, limit)
    either = role == "also" and not re.search("and|plus|well", mark.group())
    place = place.rstrip(" ?") if either else place  # "or is it A?"
    kind = "joins" if either and not place.strip(" $(*\\[") else "back"
    step = _Step(mark.start(), start + len(place), role, kind, Final[T](None))
    if mark["checks"]:
        return step
    denied = phrases.NOT.match(place)
    answer = reader.read(phrases.FIRST_SENTENCE.split(place[denied.end() :], 1)[0] if denied else place, "back")
    if answer.value is None and (later := _later(place, reader)) != Final(None):
        answer, denied = later, denied if later.value is None else None
    if denied and role == "withdrawn":
        return step
    role = "denied" if denied else role
    if role == "changed" and answer.value is None and not phrases.CHECKS.search(mark.group()):
        other = reader.read(phrases.FIRST_SENTENCE.split(place, 1)[0], "turned")
        if other.value is not None:
            role, answer = "also", other
        elif mark["turned"] is not None:
            answer = Final(None)
    return replace(step, role=role, answer=answer)


def _later(place: str, reader: Reader[T]) -> Final[T]:
    """What a place says after its last "it is" or "but"."""
    later = [*phrases.LATER.finditer(place)]
    return reader.read(place[later[-1].end() :].lstrip(" :*"), "back") if later else Final(None)


def _words_before(text: str, at: int) -> str:
    """What a statement may depend on: its own line, and where it goes on in lower case the lines before."""
    before = text[max(0, at - 100) : at]
    return before if text[at : at + 1].islower() else before.rpartition("\n")[2]


def _rest(text: str, start: int, limit: int) -> str:
    """What is left of a line, up to `limit`."""
    limit = min(limit, len(text), start + MAX_PLACE)
    end = text.find("\n", start, limit)
    return text[start : limit if end < 0 else end]


def _judgements(text: str, reader: Reader[T]) -> Iterator[_Step[T]]:
    """What is said of an answer that stands before: "B is the correct answer", "B is wrong", or "it can't be B"."""
    for mark in phrases.JUDGED.finditer(text):
        whole = text[max(0, mark.start() - 200) : mark.start()]
        began = phrases.SENTENCE_START.match(whole)
        before = whole[began.end() if began else 0 :]
        boxed = phrases.ENDS_IN_A_BOX.search(before)
        # "based on the options, (D) is the best answer"; "(C) It rises but slows down is incorrect"
        places = [(before, "judged"), (before.rpartition(",")[2], "judged"), (whole.rpartition("\n")[2], "line")]
        found = (reader.read(*place) for place in ([(boxed[1], "boxed")] if boxed else places))
        answer = next((answer for answer in found if answer.value is not None), Final[T](None))
        if mark["right"]:
            if answer.value is not None and (reader.strict or "answer" in mark["right"].lower()):
                yield _Step(mark.start(), mark.end(), "stated", "judged", answer)
            continue
        words = before.split()
        if answer.value is None and words and (mark["out"] or mark["fails"] or (mark["too"] and len(words) < 5)):
            answer = reader.read(words[-1], "judged")  # "the value 5 does not work", "I guess C works too"
        role = "also" if mark["too"] else "replaced" if mark["after"] else "denied"
        if answer.value is None and role == "denied":
            answer = reader.read(_rest(text, mark.end(), mark.end() + 80).lstrip(), "back")
        if answer.value is not None:
            yield _Step(mark.start(), mark.end(), role, "judged", answer)
    for sentence in phrases.A_SENTENCE.finditer(text) if reader.strict else ():  # "I now think it is C"
        start, stop = max(sentence.start(), sentence.end() - 200), sentence.end()
        if not phrases.STATED.search(text[start:stop]) and not phrases.SECOND_THOUGHT.search(text, start, stop):
            yield _Step(start, stop, "also", "judged", reader.read(text[start:stop], "closes"))


def _lines(text: str, reader: Reader[T], stated: bool) -> list[_Step[T]]:
    """Lines that are nothing but an answer: the last ones and those before a second thought.

    Without any, for a strict reader, what the last sentence ends on ("The texture is (D) soft."), or the first line.
    """
    lines, start = [], 0
    for line in text.splitlines(keepends=True):
        if not phrases.NO_LINE.fullmatch(line):
            lines.append((start, line if len(line) <= MAX_PLACE else ""))
        start += len(line)
    found, ends = [], True
    for start, line in reversed(lines):
        answer = reader.read(line, "line") if ends else Final[T](None)
        if answer != Final(None):
            found.append(_Step(start, start + len(line.rstrip()), "stated", "line", answer))
        ends = answer != Final(None) or phrases.SECOND_THOUGHT.match(text, start) is not None
    if reader.strict and not stated and not found:
        told = [reader.read(sentence.group()[-200:], "concludes") for sentence in phrases.A_SENTENCE.finditer(text)]
        first = [reader.read(line, "first") for _, line in lines]
        for read, best in ((told, told[-1:]), (first, first[:1])):
            if best and best[0].value is not None and {other.value for other in read} <= {None, best[0].value}:
                return [_Step(0, 0, "stated", "line", best[0])]
    return found
