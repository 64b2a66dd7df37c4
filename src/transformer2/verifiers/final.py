r"""Final answers: what does a completion end on, whatever its answers are made of?

    statements       `\boxed{18}`, `#### 18`, "the answer is 18", "answer: 18", "18 is the correct answer"
    lines            a last line that is nothing but an answer
    second thoughts  "Wait, no" and "that's wrong" take a statement back, "Actually, it's 20" replaces it, "Yes, that's
                     right" restores it; "not 18" and "18 is wrong" state nothing

The last statement counts, up to its reason ("18 because 9 x 2 = 18"). Statements side by side are a list and no answer,
whichever of them is right; for a strict reader (letters) so are any two that differ without a second thought between
them. What an answer looks like, `numeric` and `choice` say: they read one place at a time.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["BECAUSE", "Final", "Reader", "after_thoughts", "final_answer", "readable"]

T = TypeVar("T", bound=Hashable)

MAX_PLACE = 1000  # characters of one place: no answer is longer
_READABLE = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63"), "-")
    | dict.fromkeys(map(ord, "“”„‟«»‹›「」『』"), '"')
    | dict.fromkeys(map(ord, "‘’‚‛"), "'")
    | {ord(c): plain for c, plain in zip("。、【】〔〕\u3000\u00a0", ".,[][]  ", strict=True)}
)
_STATED = re.compile(
    r"(?P<hash>(?<!#)####(?!#)(?![ \t*]*(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer[ \t*]*\n))"
    r"|(?P<tag><answer>)|(?P<boxed>\\(?:boxed|fbox)\s*\{)"
    r"|(?P<chosen>\bI(?:'d|'ll|\s+would|\s+will|\s+am|'m)?\s+(?:choos(?:e|ing)|pick(?:ing)?|select(?:ing)?|go(?:ing)?\s+with)\b"
    r"|\bI\s+(?:think|believe|would\s+say)\s+(?:that\s+)?(?:it's|it\s+(?:is|must\s+be))\b)"
    r"|(?P<so>(?:^|(?<=[.!?,;:])\s)\s*(?:so|thus|hence|therefore)\b[\s,:]+)"
    r"|(?P<heading>^[ \t>*#]*(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer[ \t*]*\n)"
    r"|(?P<said>(?:\bthe\s+)?(?:\b(?:correct|final|right|best)\s+(?:answer|option|choice)"
    r"|\bans(?:wer)?)\b"
    r"(?:\s+(?:to|for|of|here)\b[^.:\n]{0,80}?)?[\s*]*(?:\b(?:is|would be|must be|should be)\b\s*:?|:|=))",
    re.IGNORECASE | re.MULTILINE,
)


def _phrases(text: str) -> str:
    """Alternatives as a pattern: any white space for a blank."""
    return "(?:" + text.replace(" ", r"\s+") + ")"


_PAUSE = r"[,.!;:\u2014\u2026*-]"
_IT = _phrases(
    r"(?:it|that|this|(?:the|my)(?: (?:correct|right|real|actual|final|true))?"
    r" (?:answer|one|option|choice|value|number|result|total))"
    r"(?:'s| is| was| (?:must|would|should|has to) be| should have been)\b"
)
_WRONG = _phrases(
    r"(?:\w+ly |all |just |simply )?(?:wrong|off|too \w+"
    r"|incorrect|mistaken|false|untrue|invalid|a (?:mistake|typo|joke)|an error"
    r"|not (?:\w+ly |the )?(?:right|correct|true|accurate|valid|good))\b"
)
_OWN = _phrases(
    r"(?:that|this|it|which|I|what I (?:said|wrote)"
    r"|(?:what is|everything|all|the) above|(?:that|this|the|my)(?: \w+)?"
    r" (?:answer|statement|response|reasoning|claim|conclusion|solution|one|option|choice|value|number|result|total))"
)
_WITHDRAWN = _phrases(
    rf"wait\b(?=\s*(?:{_PAUSE}|$)| (?:no|actually|that|this|let|I|it|sorry)\b)|(?:wh)?oops\b|never ?mind\b|correction\b"
    rf"|no(?:pe)?\b(?=\s*{_PAUSE}| (?:wait|sorry|actually|it|that|I)\b)|(?:hold|hang) on\b"
    r"|on (?:second thoughts?|reflection)\b|(?:scratch|strike|ignore|forget|disregard) that\b"
    r"|my (?:mistake|bad|apologies|error)\b"
    rf"|{_OWN}(?:'s|'m| is| am| was| seems| looks| must be| seems to be) {_WRONG}"
    rf"|{_OWN} (?:(?:is|was|does|do|did|could)(?: not|n't)|can't|cannot|can not)(?: be| seem| look| sound)?(?: to be)?"
    r" (?:the |quite )?(?:right|correct|true|accurate|final)\b(?! (?:of|for)\b)"
    r"|(?:false|wrong|incorrect|untrue|(?:a )?typo|not (?:right|correct|true))\b(?=\s*(?:[.,!;:]|$))"
    r"|I(?:'ve| have)? changed my mind\b|(?:I(?:'m| am| was) )?(?:just|only) (?:kidding|joking)\b"
    r"|I (?:retract|withdraw|doubt (?:it|that|this|my))\b"
    r"|(?:disregard|ignore|forget|scratch|strike) (?:the|this|what|my|all|everything|it)\b[^.,;:!?\n]*|wait an? \w+\b"
    r"|I (?:made an?(?: \w+)? (?:mistake|error)|was (?:wrong|mistaken)|mis[a-z]{4,}|forgot|stand corrected"
    r"|take (?:that|it) back|apologi[sz]e|messed up)\b"
    r"|let me (?:re-?(?:calculate|compute|consider|do|think|count|vise)|correct|fix|start over|(?:try|think) again)\b"
)
_CHANGED = _phrases(
    r"hm+\b|actually\b|sorry\b|apologies\b|(?:or )?rather\b(?! than)|I (?:really )?meant?\b|edit:|instead,"
    r"|make (?:that|it)\b"
    r"|(?:(?:I(?:'ll| will| would| should)?|let me) )?chang(?:e|ing) (?:that|it|my (?:final )?answer) to\b"
    r"|(?:it|that|this|the (?:result|total|value|number)) should (?=be\b|have\b)"
    rf"|(?:however|but|in fact|looking again|on closer \w+)\b(?=,? {_IT})"
    r"|let me (?:double[- ]check|check|verify|re-?(?:check|examine|evaluate))\b"
)
# Only at the start of a sentence: what follows may replace the answer.
_TURNED = _phrases(
    r"(?:but|however|instead|in (?:fact|truth|reality)|yet|although|still|nevertheless"
    r"|to be (?:honest|fair|precise)|honestly"
    r"|correct(?:ed|ing)|updat(?:ed?|ing)|revis(?:ed?|ion|ing)|amended|fixed|final(?=\s*:)|changed|new answer"
    r"|(?:after|(?:up)?on|thinking|looking|reading|considering|reconsidering)(?: \w+){0,4}(?=\s*[,:])|reconsidering)\b"
    r"|(?=not\b)"
)
_MORE = _phrases(r"(?:or|and|also|plus|as well as|alternatively)\b")
_ALSO = _phrases(
    r"(?:it|that|the answer) (?:could|might|may|can) (?:(?:also|equally) be\b|be (?=[(\[]?\w\b))|alternatively\b"
    r"|(?:maybe|perhaps|possibly)\b"
)
_KEPT = _phrases(
    r"ye(?:s|p|ah)\b"
    r"|(?:that|this|it|which|(?:the|my) answer)(?:'s| is| was) (?:(?:indeed|still) )?(?:right|correct|fine)\b"
    r"|(?:the|my)(?: \w+)? answer (?:still )?(?:stands|holds)\b"
)
_SECOND_THOUGHT = re.compile(
    r"(?:^|(?<=[.!?,;:(\u2014\u2026-])|\b(?:oh|ah|hm+|um|uh|but|or|and|so|then|no)\b,?)[\s*_\"(]{0,8}"
    rf"(?:(?P<withdrawn>{_WITHDRAWN})|(?P<changed>{_CHANGED})|(?P<also>{_ALSO})|(?P<kept>{_KEPT}))"
    rf"|(?:^|(?<=[.!?;]))[\s*_\"(]{{0,8}}(?:(?P<turned>{_TURNED})|(?P<more>{_MORE}))",
    re.IGNORECASE | re.MULTILINE,
)
_SAYS = _phrases(r"(?:should )?(?:be|have been)|I (?:meant?|think)|go(?:ing)? with|no|wait|actually|sorry|so")
_FILLER = re.compile(
    rf"(?:[\s,.:;!*\u2014\u2026-]*(?:{_IT}|{_SAYS}\b))*"
    r"(?:[\s,:;!*\u2014\u2026]|\.(?!\d))*",
    re.IGNORECASE,
)
_LATER = re.compile(rf"(?:[.,;]\s*(?:(?:so|thus|hence|therefore|but|rather)\b,?\s*)?{_IT}|,?\s+but\b)", re.IGNORECASE)
# "B is the correct answer", "B is wrong", "it can't be B"
_JUDGED = re.compile(
    r"\b(?:is|would\s+be|seems)\s+(?:therefore\s+|indeed\s+)?(?:(?P<right>"
    r"(?:(?:the|my)\s+)?(?:(?:most\s+likely\s+)?(?:correct|right|best|better|final)"
    r"(?:\s+(?:answer|option|choice|one))?|answer))(?=\s*(?:[.,:;!*]|$|because\b|since\b))"
    rf"|{_WRONG}|not\s+the\b)|\b(?:isn't|can't\s+be|cannot\s+be|is\s+not)\b",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_START = re.compile(
    r".*(?:[.!?:;](?=\s)|\b(?:so|thus|hence|therefore|actually|indeed|yes|no|but|however)\b,?|\n)",
    re.DOTALL | re.IGNORECASE,
)
_NO_ANSWER = re.compile(  # "the least likely answer"
    r"\b(?:least|worst|wrong|incorrect|other|false|bad|poor|distractor|distracting|unlikely|common|popular|tempting"
    r"|alternative|(?<!only )possible"
    r"|previous|earlier|initial|rejected|opposite|trap|naive|mistaken|erroneous)(?:\s+\w+)?\s+\Z",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"(?:(?P<denied>(?:\bnot|n't|\bnever)\s+(?:think|believe|say|mean))|\b(?:if|whether|unless|doubt|suppose|assum\w+)"
    r"|\b(?:might|may|could|would)\s+(?:\w+\s+)?(?:think|say|believe|guess)"
    r"|\b(?:people|students?|some|many|most|others|everyone|everybody|they|he|she)(?:\s+\w+){0,2}"
    r"\s+(?:think|say|believe|guess|assume|answer|claim|conclude)s?"
    r"|\b(?:mistake|error|misconception|trap|tempting)\b(?:(?!\b(?:so|thus|hence|therefore|but)\b)[^.,;:!?\n]){0,40}"
    r")\s+(?:that\s+)?\Z",
    re.IGNORECASE,
)
_FIRST_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=\S)")
_A_SENTENCE = re.compile(r"[^.!?;\n]{1,200}(?=[.!;\n]|\Z)")
_CHECKS = re.compile(r"\blet\s+me\s+(?!change)|\bsorry|\bapologies", re.IGNORECASE)
_NOT = re.compile(r"(?:(?:definitely|certainly)\s+)?(?:not|never)\b\s*", re.IGNORECASE)
_LISTED = re.compile(r"[\s$)*.]*(?:[,/;&]|\bor\b|\band\b)", re.IGNORECASE)
_CONJUNCTION = re.compile(r"[\s,;]*\b(?:or|and|so|but)\s*\Z", re.IGNORECASE)
_BRACE = re.compile(r"[{}]")
BECAUSE = re.compile(
    r"(?:[,;]\s*|\s)\(?(?:because|since|as(?!\s+(?:well|many|much|follows))|where|given\s+that|due\s+to|thanks\s+to|i\.e\.|namely"
    r"|which(?!\s+(?:rounds|is\s+(?:about|approximately|roughly|not)|isn't))|obtained|(?:and\s+)?not(?=\s+(?-i:[^a-z\s]))"
    r"|rather\s+than|instead\s+of|as\s+opposed\s+to)\b|\u2014\s*(?!(?:or|and|no|not|but|if|maybe|perhaps)\b)(?=[A-Za-z])",
    re.IGNORECASE,
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


class Reader(Protocol[T]):
    """Reads the answer in one place.

    Attributes:
        strict: Whether two statements that differ are no answer, however far apart.
        unusable: Reason for a place that denies, doubts or is cut off.
        listed: Reason for a box that another answer follows.
    """

    strict: bool
    unusable: str
    listed: str

    def read(self, place: str, kind: str) -> Final[T]:
        """The answer in a place: hash, boxed, said, heading, back (a second thought), turned (any
        other answer in the sentence), closes (one at its end), judged, line, or first (line)."""

    def begins(self, place: str) -> bool:
        """Whether a place begins with the words of an answer, which are then no words about it."""


@dataclass(frozen=True)
class _Step(Generic[T]):
    start: int
    stop: int
    role: str  # stated, withdrawn, changed, also, turned, closes, kept or denied
    kind: str
    answer: Final[T]


def after_thoughts(text: str) -> str:
    """A text without what was thought before (`<think>`)."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def readable(text: str) -> str:
    """A text without thoughts, and with full-width and typographic characters in their plain forms."""
    return after_thoughts(text).translate(_READABLE)


def final_answer(text: str, reader: Reader[T]) -> Final[T]:
    """The answer that a completion gives in the end."""
    text = readable(text)
    steps = sorted([*_statements(text, reader), *_judgements(text, reader)], key=lambda s: s.start)
    stated = any(step.role == "stated" for step in steps)
    now, taken_back, reason = None, None, "no final answer"
    given: set[T] = set()  # since the last second thought
    last: _Step[T] | None = None
    for step in sorted([*steps, *_lines(text, reader, stated)], key=lambda s: s.start):
        value = step.answer.value
        if step.role == "stated":
            marked = last is not None and last.kind in ("hash", "boxed") and not reader.strict
            if step.kind == "line" and marked and reason != "taken back":
                continue  # after a marked number, the text goes on with something else
            if not reader.strict and not (last and _is_list(text[last.stop : step.start], last.kind, step.kind)):
                given = set()
            given |= set() if value is None else {value}
            now = value if len(given) == 1 else None
            reason, last = step.answer.reason or "several answers", step
        elif step.role == "denied":
            if value is not None and value == now:
                taken_back, now, reason, given = None, None, "taken back", set()
            elif last is None and step.kind in ("said", "heading"):
                reason = reader.unusable
        elif last is None:
            continue
        elif step.role == "kept":
            now = taken_back if reason == "taken back" else now
        elif step.role in ("also", "turned", "closes"):
            if value is not None and now not in (None, value):
                now, reason = None, "several answers"
        else:
            given = set()
            if step.role == "withdrawn" and now is not None:
                taken_back, now, reason = now, None, "taken back"
            if value is not None:
                now, given = value, {value}
            elif step.answer.reason and now is not None:
                now, reason = None, step.answer.reason
    return Final(now) if now is not None else Final(None, reason)


def _statements(text: str, reader: Reader[T]) -> Iterator[_Step[T]]:
    """What is stated, and second thoughts, in order."""
    thoughts = (m for m in _SECOND_THOUGHT.finditer(text) if not reader.begins(_rest(text, m.start(), len(text))))
    stated = (m for m in _STATED.finditer(text) if reader.strict or not m["so"])
    marks = sorted([*stated, *thoughts], key=re.Match.start)
    marks = [  # "The answer is: so it can be done" is one statement
        m for i, m in enumerate(marks) if m.lastgroup != "so" or not i or text[marks[i - 1].end() : m.start()].strip()
    ]
    for mark, following in zip(marks, [*marks[1:], None], strict=False):
        kind, start = mark.lastgroup or "", mark.end()
        limit = following.start() if following else len(text)
        if kind == "boxed":
            stop = _closing_brace(text, start)
            answer = reader.read(text[start : stop or start], kind)
            also = _LISTED.match(text, stop + 1) if stop else None
            if stop is None:
                answer = Final(None, answer.reason or reader.unusable)
            elif also and reader.read(_rest(text, also.end(), len(text)), "back").value is not None:
                answer = Final(None, reader.listed)
            role, stop = "stated", (stop or start) + 1
        elif kind == "so":
            place = _rest(text, start, limit)
            role, stop, answer = "stated", start + len(place), reader.read(place, "judged")
        elif kind in ("hash", "heading", "said", "chosen", "tag"):
            while start < limit and (text[start].isspace() or text[start] in "*:"):
                start += 1
            place = _rest(text, start, limit).partition("</answer>")[0]
            stop = start + len(place)
            kind = "said" if kind == "tag" else kind
            if kind == "said" and _NO_ANSWER.search(text, max(0, mark.start() - 60), mark.start()):
                continue
            supposed = _SUPPOSED.search(text, max(0, mark.start() - 60), mark.start())
            place = _CONJUNCTION.sub("", place) if following else place
            kind = "heading" if mark.group().rstrip().endswith((":", "=")) else kind
            answer = reader.read(place, kind)
            denied = _NOT.match(place) if answer.value is None else None
            later = [*_LATER.finditer(place)] if denied else []
            if later and (said := reader.read(place[later[-1].end() :].lstrip(" :*"), "back")).value is not None:
                answer, denied = said, None  # "the answer is not 17, it is 18"
            answer = reader.read(place[denied.end() :], kind) if denied else answer
            if supposed and not supposed["denied"]:
                answer = Final(None, answer.reason or "supposed")
            role = "denied" if supposed or denied else "stated"
        else:
            start = _FILLER.match(text, start, limit).end()  # type: ignore[union-attr]  # it matches nothing as well
            place = _rest(text, start, limit)
            denied = _NOT.match(place)
            answer = reader.read(_FIRST_SENTENCE.split(place[denied.end() :], 1)[0] if denied else place, "back")
            if answer.value is None and (later := [*_LATER.finditer(place)]):  # "I misread it; it is 18"
                answer = reader.read(place[later[-1].end() :].lstrip(" :*"), "back")
                denied = None if answer.value is not None else denied
            role = "denied" if denied and kind != "withdrawn" else {"turned": "changed", "more": "also"}.get(kind, kind)
            if role == "changed" and answer.value is None and not _CHECKS.search(mark.group()):
                other = reader.read(_FIRST_SENTENCE.split(place, 1)[0], "turned")
                role, answer = (
                    ("turned", other)
                    if other.value is not None
                    else (role, Final(None) if kind == "turned" else answer)
                )
            kind, stop = "back", start + len(place)
            if denied and role == "withdrawn":
                answer = Final(None)
        if role in ("withdrawn", "changed", "kept", "also", "turned") or answer != Final(None):
            yield _Step(mark.start(), stop, role, kind, answer)


def _rest(text: str, start: int, limit: int) -> str:
    """What is left of a line, up to `limit`."""
    limit = min(limit, len(text), start + MAX_PLACE)
    end = text.find("\n", start, limit)
    return text[start : limit if end < 0 else end]


def _judgements(text: str, reader: Reader[T]) -> Iterator[_Step[T]]:
    """What is said of an answer that stands before: "B is the correct answer", "B is wrong", or "it can't be B"."""
    for mark in _JUDGED.finditer(text):
        before = text[max(0, mark.start() - 200) : mark.start()]
        began = _SENTENCE_START.match(before)
        before = before[began.end() if began else 0 :]
        answer = reader.read(before, "judged")
        if answer.value is None and "," in before:  # "based on the options, (D) is the best answer"
            answer = reader.read(before.rpartition(",")[2], "judged")
        if mark["right"]:
            if answer.value is not None and (reader.strict or "answer" in mark["right"].lower()):
                yield _Step(mark.start(), mark.end(), "stated", "judged", answer)
            continue
        if answer.value is None:
            answer = reader.read(_rest(text, mark.end(), mark.end() + 80).lstrip(), "back")
        yield _Step(mark.start(), mark.end(), "denied", "judged", answer)
    for sentence in _A_SENTENCE.finditer(text) if reader.strict else ():  # "I now think it is C"
        if not _STATED.search(sentence.group()) and not _SECOND_THOUGHT.search(text, *sentence.span()):
            yield _Step(*sentence.span(), "closes", "judged", reader.read(sentence.group(), "closes"))


def _lines(text: str, reader: Reader[T], stated: bool) -> Iterator[_Step[T]]:
    """Lines that are nothing but an answer: the last ones, those before a second thought, and else the first line."""
    lines, start = [], 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            lines.append((start, line if len(line) <= MAX_PLACE else ""))
        start += len(line)
    found, ends = [], True
    for start, line in reversed(lines):
        answer = reader.read(line, "line") if ends else Final[T](None)
        if answer != Final(None):
            found.append(_Step(start, start + len(line.rstrip()), "stated", "line", answer))
        ends = answer != Final(None) or _SECOND_THOUGHT.match(text, start) is not None
    if reader.strict and not stated and not found and lines:
        answers = [reader.read(line, "first") for _, line in lines]
        if answers[0].value is not None and len({a.value for a in answers} - {None}) == 1:
            found.append(_Step(0, lines[0][0] + len(lines[0][1].rstrip()), "stated", "line", answers[0]))
    yield from found


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_PLACE):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.start()
    return None


def _is_list(between: str, before: str, after: str) -> bool:
    """Whether two statements with this text between them are one list of answers."""
    between = between.strip(" \t\n,;.*$)(").lower()
    alike = after in (before, "line") or {before, after} == {"said", "heading"}
    return between in ("or", "and", "/", "|", "&") or (between == "" and alike)
