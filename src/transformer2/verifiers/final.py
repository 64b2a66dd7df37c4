r"""Final answers: what does a completion end on, whatever its answers are made of?

    statements       `\boxed{18}`, `#### 18`, "the answer is 18", "answer: 18", "18 is the correct answer"
    lines            a last line that is nothing but an answer
    second thoughts  "Wait, no" and "that's wrong" take a statement back, "Actually, it's 20" replaces it, "Yes, that's
                     right" restores it; "not 18", "18 is wrong" and "18 is extraneous" state nothing

The last statement counts, up to its reason ("18 because 9 x 2 = 18"). Statements side by side are a list, which is an
answer only for a reader that takes lists (mathematics); for a strict reader (letters) any two that differ without a
second thought between them are none. A text that says two things in the end ("6 or \boxed{5}") says neither, whichever
is right. What an answer looks like, `numeric`, `choice` and `math.final` say: they read one place at a time.

Time is linear in the text: each pattern bounds its runs of blanks or starts at a word, and places have a longest length.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

__all__ = ["BECAUSE", "Final", "Reader", "after_thoughts", "boxes", "final_answer", "readable"]

T = TypeVar("T", bound=Hashable)

MAX_TEXT = 100_000  # characters from the end of a completion
MAX_PLACE = 1000  # characters of one place: no answer is longer
MAX_BOX = 512
_READABLE = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63"), "-")
    | dict.fromkeys(map(ord, "“”„‟«»‹›「」『』"), '"')
    | dict.fromkeys(map(ord, "‘’‚‛"), "'")
    | {ord(c): plain for c, plain in zip("。、【】〔〕\u3000\u00a0", ".,[][]  ", strict=True)}
)


def _phrases(text: str) -> str:
    """Alternatives as a pattern: any white space for a blank."""
    return "(?:" + text.replace(" ", r"\s+") + ")"


_HEADING = r"[ \t>*#]{0,20}(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer[ \t*]{0,20}\n"
_STATED = re.compile(
    rf"(?P<hash>(?<!#)####(?!#)(?!{_HEADING}))"
    r"|(?P<tag><answer>)|(?P<boxed>\\(?:boxed|fbox)(?![A-Za-z])\s{0,9})"
    r"|(?P<chosen>\bI(?:'d|'ll|\s+would|\s+will|\s+am|'m)?\s+(?:choos(?:e|ing)|pick(?:ing)?|select(?:ing)?|go(?:ing)?\s+with)\b"
    r"|\bI\s+(?:think|believe|would\s+say)\s+(?:that\s+)?(?:it's|it\s+(?:is|must\s+be))\b)"
    r"|(?P<so>(?:^|(?<=[.!?,;:])\s)[ \t]{0,9}(?:so|thus|hence|therefore)\b[\s,:]+)"
    rf"|(?P<heading>^{_HEADING})"
    r"|(?P<final>^[ \t>*#]{0,20}(?:my[ \t]+)?(?:final|conclusion|verdict|choice)[ \t*]{0,20}:)"
    r"|(?P<said>(?:\bthe\s+)?(?:\b(?:correct|final|right|best)\s+(?:answer|option|choice)|\bans(?:wer)?)\b"
    r"(?:\s{1,9}(?:to|for|of|here)\b[^.:\n]{0,80}?)?[\s*]{0,9}(?:\b(?:is|would be|must be|should be)\b\s{0,9}:?|:|=))",
    re.IGNORECASE | re.MULTILINE,
)
_PAUSE = r"[,.!;:\u2014\u2026*-]"
_IT = _phrases(
    r"(?:it|that|this|(?:the|my)(?: (?:correct|right|real|actual|final|true))?"
    r" (?:answer|one|option|choice|value|number|result|total))"
    r"(?:'s| is| was| (?:must|would|should|has to) be| should have been)\b"
)
_WRONG = _phrases(
    r"(?:\w+ly |all |just |simply )?(?:wrong|off|too \w+"
    r"|incorrect|mistaken|false|untrue|invalid|(?:an )?extraneous|a (?:mistake|typo|joke)|an error"
    r"|(?:rejected|discarded|excluded|ruled out)"
    r"|not (?:\w+ly |the )?(?:right|correct|true|accurate|valid|good|(?:an? |in )?(?:solution|root|answer|domain|range))\b)"
)
_OWN = _phrases(
    r"(?:that|this|it|which|I|what I (?:said|wrote)"
    r"|(?:what is|everything|all|the) above|(?:that|this|the|my)(?: \w+)?"
    r" (?:answer|statement|response|reasoning|claim|conclusion|solution|root|one|option|choice|value|number|result|total))"
)
_CHECK = r"(?:verif|check|double|confirm|test)\w*"
_WE = r"(?:let (?:me|us)|let's|we|I)\b"
_WITHDRAWN = _phrases(
    rf"wait\b(?!,? {_WE}[^.\n]{{0,20}}\b{_CHECK})"
    rf"(?=\s*(?:{_PAUSE}|$)| (?:no|actually|that|this|let|I|it|sorry)\b)|(?:wh)?oops\b|never ?mind\b|correction\b"
    rf"|no(?:pe)?\b(?=\s*{_PAUSE}| (?:wait|sorry|actually|it|that|I)\b)|(?:hold|hang) on\b|not so fast\b"
    r"|not (?:quite|exactly)(?=\s*[,.:;!])|(?:one|just a) (?:moment|second|minute)\b"
    r"|on reflection\b|(?:on )?second thoughts?\b|come to think of it\b|(?:scratch|strike|ignore|forget|disregard) that\b"
    r"|my (?:mistake|bad|apologies|error)\b"
    rf"|(?:(?:however|but|in fact),? )?{_OWN}(?:'s|'m| is| am| was| seems| looks| must be| seems to be) {_WRONG}"
    rf"|{_OWN} (?:(?:is|was|does|do|did|could)(?: not|n't)|can't|cannot|can not)(?: be| seem| look| sound)?(?: to be)?"
    r" (?:the |quite )?(?:right|correct|true|accurate|final)\b(?! (?:of|for)\b)"
    r"|(?:false|wrong|incorrect|untrue|(?:a )?typo|not (?:right|correct|true))\b(?=\s*(?:[.,!;:]|$))"
    r"|I(?:'ve| have)? changed my mind\b|(?:I(?:'m| am| was) )?(?:just|only) (?:kidding|joking)\b"
    r"|I (?:retract|withdraw|doubt (?:it|that|this|my))\b"
    r"|(?:disregard|ignore|forget|scratch|strike) (?:the|this|what|my|all|everything|it)\b[^.,;:!?\n]*|wait an? \w+\b"
    r"|I (?:made an?(?: \w+)? (?:mistake|error)|was (?:wrong|mistaken)|mis[a-z]{4,}|forgot|stand corrected"
    r"|take (?:that|it) back|apologi[sz]e|messed up)\b"
    r"|let me (?:re-?(?:calculate|compute|consider|do|think|count|vise)|(?:correct|fix)(?: that| this| it)?|start over|(?:try|think) again)\b"
)
_CHANGED = _phrases(
    r"hm+\b|actually\b|sorry\b|apologies\b|(?:or )?rather\b(?! than)|I (?:really )?meant?\b|edit:|instead,"
    r"|I(?:'d| would) (?:rather|sooner|now)(?: \w+)? (?:say|go (?:with|for)|pick|choose|take)\b|then again\b"
    r"|make (?:that|it)\b"
    r"|(?:(?:I(?:'ll| will| would| should)?|let me) )?chang(?:e|ing) (?:that|it|my (?:final )?answer) to\b"
    r"|(?:it|that|this|the (?:result|total|value|number)) should (?=be\b|have\b)"
    rf"|(?:however|but|in fact|looking again|on closer \w+)\b(?=,? {_IT})"
    rf"|(?P<checks>wait\b,? {_WE}[^.\n]{{0,20}}\b{_CHECK}|let me (?:{_CHECK}|re-?(?:check|examine|evaluate))\b)"
)
# Only at the start of a sentence: what follows may replace the answer.
_TURNED = _phrases(
    r"(?:but|however|instead|in (?:fact|truth|reality)|yet|although|still|nevertheless"
    r"|to be (?:honest|fair|precise)|honestly"
    r"|correct(?:ed|ing)|updat(?:ed?|ing)|revis(?:ed?|ion|ing)|amended|fixed|changed|new answer|better(?=\s*:)"
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
    r"(?:^|(?<=[.!?,;:(\u2014\u2026-])|(?<=\})\$?|\b(?:oh|ah|hm+|um|uh|but|or|and|so|then|no)\b,?)(?:[ \t*_\"(]|(?<!\n)\n){0,8}+"
    rf"(?:(?P<withdrawn>{_WITHDRAWN})|(?P<changed>{_CHANGED})|(?P<also>{_ALSO})|(?P<kept>{_KEPT}))"
    rf"|(?:^|(?<=[.!?;]))[ \t*_\"(]{{0,8}}+(?:(?P<turned>{_TURNED})|(?P<more>{_MORE}))",
    re.IGNORECASE | re.MULTILINE,
)
_SAYS = _phrases(r"(?:should )?(?:be|have been)|I (?:meant?|think)|go(?:ing)? with|no|wait|actually|sorry|so")
_FILLER = re.compile(
    rf"(?:[\s,.:;!*\u2014\u2026-]*+(?:{_IT}|{_SAYS}\b))*(?:[\s,:;!*\u2014\u2026]|\.(?!\d))*",
    re.IGNORECASE,
)
_LATER = re.compile(rf"(?:[.,;]\s*(?:(?:so|thus|hence|therefore|but|rather)\b,?\s*)?{_IT}|,?\s+but\b)", re.IGNORECASE)
_GOOD = r"(?:right|correct|fine|possible|good|plausible|valid|acceptable|reasonable|an? (?:option|possibility))\b"
_FITS = _phrases(rf"(?:is|could be|might be|may be|can be|would be) {_GOOD}|(?:could|might|may|can) (?:work|fit)\b")
_ALSO_FITS = _phrases(rf"(?:is|could|might|may|can) (?:also|equally) (?:be )?(?:{_GOOD}|(?:work|fit)\b)")
# "B is the correct answer", "B is wrong", "it can't be B", "x = 5 is extraneous", "C works too", "C it is"
_JUDGED = re.compile(
    r"\b(?:is|was|would\s+be|seems|must\s+be)\s+(?:therefore\s+|indeed\s+)?(?:(?P<right>"
    r"(?:(?:the|my)\s+)?(?:(?:most\s+likely\s+)?(?:correct|right|best|better|final)"
    r"(?:\s+(?:answer|option|choice|one))?|answer))(?=\s{0,9}(?:[.,:;!*]|$|because\b|since\b))"
    rf"|(?P<out>(?:(?:an?|also|in\s+fact)\s+)?(?:extraneous|rejected|discarded|excluded|ruled\s+out|impossible|invalid)\b"
    r"|not\s+(?:(?:an?|in|the)\s+)?(?:valid|possible|allowed|solution|root|domain)\b)"
    rf"|{_WRONG}|not\s+the\b)|\b(?:isn't|can't\s+be|cannot\s+be|is\s+not)\b"
    r"|\b(?P<fails>(?:does\s+not|doesn't|do\s+not|don't|fails\s+to)\s+(?:work|satisfy|hold|check\s+out|fit)\b|fails\b)"
    r"|\b(?P<rejected>(?:reject|discard|exclude|rule\s+out)\b)"
    rf"|\b(?P<too>(?:(?:works|fits|would\s+(?:do|work|fit))|{_FITS})\s+(?:just\s+)?(?:too|as\s+well|also)\b"
    rf"|also\s+(?:works|fits)\b|{_ALSO_FITS})"
    r"|\b(?P<after>it\s+is|after\s+all|instead|it\s+should\s+be|it\s+must\s+be)(?=\s{0,9}(?:[.!;]|$))",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_START = re.compile(
    r".*(?:[.!?:;](?=\s)|\b(?:so|thus|hence|therefore|then|actually|indeed|yes|no|but|however)\b,?|\n)",
    re.DOTALL | re.IGNORECASE,
)
_NO_ANSWER = re.compile(  # "the least likely answer"
    r"\b(?:least|worst|wrong|incorrect|other|false|bad|poor|distractor|distracting|unlikely|common|popular|tempting"
    r"|alternative|(?<!only )possible|(?:check|verify|confirm)(?:ing)?\s+(?:our|the|this|my)"
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
# Around a box: what denies it, what makes it a part of something, or one of several.
_BOX_DENIED = re.compile(
    r"(?:\bnot|n't|\b(?:cannot|can't) be|\b(?:wrong|incorrect) answer is|\brather than|\binstead of|\bmistake is)"
    r"[\s$*(\\\[]{0,9}\Z",
    re.IGNORECASE,
)
_PART_BEFORE = re.compile(
    r"(?:(?:[$=]|\\[(\[])\s*-[{(]*|[\d^|/][{(]*|(?:\+|(?<![-=])[<>])\s*|\\(?:cdot|times|neq?|sqrt|frac(?:\{\w*\})?)[\s{]*)\Z"
)
_PART_AFTER = re.compile(
    r"[)\s]{0,9}(?:\\(?:pi|cdot|times)\b|\^(?!\{?\\circ)|[+/|]|\*(?!\*|\s|\Z)|\}\s*\{|[\s$]{0,9}(?:hundred|thousand|million|billion|dozen)\b)"
)
_ENDS_IN_A_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*+)\}[\s$.)\]*\\]*\Z")
_OR_BEFORE = re.compile(
    r"(?<!of )(\$(?!\\boxed|\\fbox)[^$\n]{1,40}(?<!,)\$|\\\([^()\n]{1,40}\\\)|(?<![A-Za-z\d])-?\d[\d.,/]*|\b[A-Z])\s+or\s+[\s$*(\\\[]{0,9}(?P<name>[A-Za-z]\s*=)?\s*\Z"
)
_LISTED = re.compile(
    r"[\s$)*.\]\\]{0,9}(?:\\text\s*\{\s*)?(?:(?P<comma>[,/;&|])|\bor\b|\band\b)[\s}]{0,9}", re.IGNORECASE
)
_BARE_BOX = re.compile(  # \boxed5, \boxed\frac12
    r"[-+]?(?:\d+(?:[.,]\d+)*|\\[dt]?frac\s*(?:\d|\{[^{}]*\})\s*(?:\d|\{[^{}]*\})|\\[A-Za-z]+(?:\{[^{}]*\})?)|[(\[]?[A-Za-z](?![A-Za-z])[)\]]?"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_A_HEADING = re.compile(r"\s*\d+[.)]\s+[A-Z][A-Za-z]*(?:\s+[A-Za-z]+){0,3}\s*:?\s*\Z")  # "#### 2. Check"
_FIRST_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=\S)")
_A_SENTENCE = re.compile(r"[^.!?;\n]++(?=[.!;\n]|\Z)")
_CHECKS = re.compile(r"\bsorry|\bapologies", re.IGNORECASE)
_NOT = re.compile(r"(?:(?:definitely|certainly)\s+)?(?:not|never)\b\s*", re.IGNORECASE)
_CONJUNCTION = re.compile(r"[\s,;]*\b(?:or|and|so|but)\s*\Z", re.IGNORECASE)
_NAMED = re.compile(r"(?:[a-z](?:_\w)?|\\?[a-z]+)\s*=\s*\Z", re.IGNORECASE)
BECAUSE = re.compile(
    r"(?:[,;]\s*|\s)\(?(?:because|since|as(?!\s+(?:well|many|much|follows))|where|given\s+that|due\s+to|thanks\s+to|i\.e|namely|that\s+is(?=,)"
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
        unusable: Reason for a place that denies or doubts.
        unclosed: Reason for a box that is cut off.
        listed: Reason for a box that another answer follows.
    """

    strict: bool
    unusable: str
    unclosed: str
    listed: str

    def read(self, place: str, kind: str) -> Final[T]:
        """The answer in a place: hash, boxed, said, heading, chosen, back (a second thought), listed (behind a box),
        turned (any other answer in the sentence), closes (one at its end), judged, line, or first (line)."""

    def begins(self, place: str) -> bool:
        """Whether a place begins with the words of an answer, which are then no words about it."""

    def joined(self, answers: Sequence[T]) -> T | None:
        """The one answer that a list of several is, if it is one."""


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


def boxes(text: str) -> list[str]:
    """What stands in each closed box, in order."""
    ends = _closing_braces(text)
    spans = (_box(text, mark.end(), ends) for mark in _STATED.finditer(text) if mark["boxed"])
    return [text[slice(*span)].strip() for span in spans if span]


def final_answer(text: str, reader: Reader[T]) -> Final[T]:
    """The answer that a completion gives in the end."""
    text = readable(text)[-MAX_TEXT:]
    steps = sorted([*_statements(text, reader), *_judgements(text, reader)], key=lambda s: s.start)
    stated = any(step.role == "stated" for step in steps)
    now, taken_back, reason = None, None, "no final answer"
    given: list[T] = []  # since the last second thought; for a reader that is not strict, side by side
    listed: list[T] = []  # what `now` was put together from
    last: _Step[T] | None = None
    before: _Step[T] | None = None
    for step in sorted([*steps, *_lines(text, reader, stated)], key=lambda s: s.start):
        value, role = step.answer.value, step.role
        if last and before and before.kind == "joins" and not text[before.stop : step.start].strip(" $(*\\["):
            role = "also"  # "or maybe \\boxed{6}"
        before = step
        if last and step.kind == "hash" and _A_HEADING.fullmatch(text[step.start + 4 : step.stop]):
            continue
        if role == "stated":
            marked = last is not None and last.kind in ("hash", "boxed") and not reader.strict
            if step.kind == "line" and marked and reason != "taken back":
                continue  # after a marked number, the text goes on with something else
            if not reader.strict and not (last and _is_list(text[last.stop : step.start], last.kind, step.kind)):
                given = []
            given += [value] if value is not None and value not in given else []
            now = value if len(given) == 1 or value is None else reader.joined(given)
            reason, last, listed = step.answer.reason or "several answers", step, [*given]
        elif role == "denied":
            if now is not None and value in listed and len(listed) > 1:
                listed.remove(value)
                now = listed[0] if len(listed) == 1 else reader.joined(listed)
            elif value is not None and value == now:
                taken_back, now, reason, given = None, None, "taken back", []
            elif last is None and step.kind in ("said", "heading", "final", "boxed"):
                reason = reader.unusable
        elif role == "replaced":
            now, given, last = value, [value], step
        elif last is None:
            continue
        elif role == "kept":
            now = taken_back if reason == "taken back" else now
        elif role in ("also", "turned", "closes"):
            if value is not None and now not in (None, value):
                now, reason = None, "several answers"
        else:
            given = []
            if role == "withdrawn" and now is not None:
                taken_back, now, reason = now, None, "taken back"
            if value is not None:
                now, given = value, [value]
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
    ends = _closing_braces(text)
    for mark, following in zip(marks, [*marks[1:], None], strict=False):
        limit = following.start() if following else len(text)
        if mark.re is _SECOND_THOUGHT:
            step = _thought(text, mark, limit, reader)
        elif mark["boxed"]:
            step = _boxed(text, mark, ends, reader)
        else:
            step = _said(text, mark, limit, reader)
        if step and (step.role not in ("stated", "denied") or step.answer != Final(None)):
            yield step


def _boxed(text: str, mark: re.Match[str], ends: dict[int, int], reader: Reader[T]) -> _Step[T]:
    span = _box(text, mark.end(), ends)
    if span is None:
        return _Step(mark.start(), mark.end(), "stated", "boxed", Final(None, reader.unclosed))
    stop = span[1] + (text[span[1] : span[1] + 1] == "}")
    answer = reader.read(text[slice(*span)], "boxed")
    before, also = text[max(0, mark.start() - 60) : mark.start()], _LISTED.match(text, stop)
    if _BOX_DENIED.search(before):
        return _Step(mark.start(), stop, "denied", "boxed", answer)
    if _PART_BEFORE.search(before) or _PART_AFTER.match(text, stop):
        answer = Final(None, "the box holds a part of an answer")
    elif (other := _OR_BEFORE.search(before)) and answer.value is not None:
        # "72/6 or \\boxed{12}" and "x = 6 or x = \\boxed{5}" are lists as well; "2x = 10 or x = \\boxed{5}" is an argument.
        name, equals, side = other[1].strip("$\\() ").partition("=")
        alike = not equals or (len(name.strip()) == 1 and name.strip() == (other["name"] or name).strip(" ="))
        first = reader.read(side if equals else other[1], "boxed").value if alike else None
        if first not in (None, answer.value):
            both = reader.joined([first, answer.value])
            answer = Final(both, "" if both is not None else "several answers")
    elif (
        also
        and reader.read(_rest(text, also.end(), len(text)), "listed" if also["comma"] else "back").value is not None
    ):
        answer = Final(None, reader.listed)
    return _Step(mark.start(), stop, "stated", "boxed", answer)


def _said(text: str, mark: re.Match[str], limit: int, reader: Reader[T]) -> _Step[T] | None:
    """What stands behind a mark, up to the next one: "the answer is not 17, it is 18" says 18."""
    kind, start = mark.lastgroup or "", mark.end()
    before = text[max(0, mark.start() - 60) : mark.start()]
    if kind == "said" and _NO_ANSWER.search(before):
        return None
    while start < limit and (text[start].isspace() or text[start] in "*:"):
        start += 1
    place = _rest(text, start, limit).partition("</answer>")[0]
    stop = start + len(place)
    if kind == "so":
        return _Step(mark.start(), stop, "stated", kind, reader.read(place, "judged"))
    if kind in ("said", "tag"):
        kind = "heading" if mark.group().endswith((":", "=")) else "said"
    place = _CONJUNCTION.sub("", place) if limit < len(text) else place
    answer = reader.read(place, kind)
    denied = _NOT.match(place) if answer.value is None else None
    if denied:
        later = _later(place, reader)
        answer = reader.read(place[denied.end() :], kind) if later.value is None else later
        denied = denied if later.value is None else None
    supposed = _SUPPOSED.search(before)
    if supposed and not supposed["denied"]:
        answer = Final(None, answer.reason or "supposed")
    return _Step(mark.start(), stop, "denied" if supposed or denied else "stated", kind, answer)


def _thought(text: str, mark: re.Match[str], limit: int, reader: Reader[T]) -> _Step[T]:
    """A second thought with the answer that it gives: "I misread it; it is 18"."""
    said = mark.lastgroup or ""
    role = {"turned": "changed", "more": "also"}.get(said, said)
    start = _FILLER.match(text, mark.end(), limit).end()  # type: ignore[union-attr]  # it matches nothing as well
    place = _rest(text, start, limit)
    kind = "joins" if role == "also" and not re.search("and|plus|well", mark.group()) and not place.strip(" $(*\\[") else "back"
    step = _Step(mark.start(), start + len(place), role, kind, Final[T](None))
    if mark["checks"]:
        return step
    denied = _NOT.match(place)
    answer = reader.read(_FIRST_SENTENCE.split(place[denied.end() :], 1)[0] if denied else place, "back")
    if answer.value is None and (later := _later(place, reader)) != Final(None):
        answer = later
        denied = None if answer.value is not None else denied
    if denied and role == "withdrawn":
        return step
    role = "denied" if denied else role
    if role == "changed" and answer.value is None and not _CHECKS.search(mark.group()):
        other = reader.read(_FIRST_SENTENCE.split(place, 1)[0], "turned")
        if other.value is not None:
            role, answer = "turned", other
        elif said == "turned":
            answer = Final(None)
    return replace(step, role=role, answer=answer)


def _later(place: str, reader: Reader[T]) -> Final[T]:
    """What a place says after its last "it is" or "but"."""
    later = [*_LATER.finditer(place)]
    return reader.read(place[later[-1].end() :].lstrip(" :*"), "back") if later else Final(None)


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
        boxed = _ENDS_IN_A_BOX.search(before)
        answer = reader.read(boxed[1], "boxed") if boxed else reader.read(before, "judged")
        if answer.value is None and "," in before:  # "based on the options, (D) is the best answer"
            answer = reader.read(before.rpartition(",")[2], "judged")
        if mark["right"]:
            if answer.value is not None and (reader.strict or "answer" in mark["right"].lower()):
                yield _Step(mark.start(), mark.end(), "stated", "judged", answer)
            continue
        words = before.split()
        if answer.value is None and words and (mark["out"] or mark["fails"] or (mark["too"] and len(words) < 5)):
            answer = reader.read(words[-1], "judged")  # "the value 5 does not work", "I guess C works too"
        if mark["too"] or mark["after"]:
            if answer.value is not None:
                yield _Step(mark.start(), mark.end(), "also" if mark["too"] else "replaced", "judged", answer)
            continue
        if answer.value is None:
            answer = reader.read(_rest(text, mark.end(), mark.end() + 80).lstrip(), "back")
        yield _Step(mark.start(), mark.end(), "denied", "judged", answer)
    for sentence in _A_SENTENCE.finditer(text) if reader.strict else ():  # "I now think it is C"
        start, stop = max(sentence.start(), sentence.end() - 200), sentence.end()
        if not _STATED.search(text[start:stop]) and not _SECOND_THOUGHT.search(text, start, stop):
            yield _Step(start, stop, "closes", "judged", reader.read(text[start:stop], "closes"))


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
    if reader.strict and not stated and not found:
        told = [(s.start(), s.end(), reader.read(s.group(), "concludes")) for s in _A_SENTENCE.finditer(text)]
        if told and told[-1][2].value is not None and len({a.value for *_, a in told} - {None}) == 1:
            found.append(_Step(told[-1][0], told[-1][1], "stated", "line", told[-1][2]))
    if reader.strict and not stated and not found and lines:
        answers = [reader.read(line, "first") for _, line in lines]
        if answers[0].value is not None and len({a.value for a in answers} - {None}) == 1:
            found.append(_Step(0, lines[0][0] + len(lines[0][1].rstrip()), "stated", "line", answers[0]))
    yield from found


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed ends, by the place behind it."""
    ends, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            ends[opened.pop()] = brace.start()
    return ends


def _box(text: str, start: int, ends: dict[int, int]) -> tuple[int, int] | None:
    """From where to where the argument of a box goes; None where it is cut off or too long."""
    if text[start : start + 1] == "{":
        stop = ends.get(start + 1, len(text))
        return (start + 1, stop) if stop <= start + 1 + MAX_BOX and stop < len(text) else None
    bare = _BARE_BOX.match(text, start)
    return bare.span() if bare else None


def _is_list(between: str, before: str, after: str) -> bool:
    """Whether two statements with this text between them are one list of answers."""
    between = _NAMED.sub("", between.strip(" \t\n$*()\\[]")).strip(" \t\n,;.*$)(\\[]").lower()
    alike = after in (before, "line") or {before, after} == {"said", "heading"}
    return between in ("or", "and", "/", "|", "&", "text{or}", "text{ or }", "text{and}", "text{ and }") or (
        between == "" and alike
    )
