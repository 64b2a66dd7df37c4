r"""Where the final answer of a completion stands: the last `\boxed{...}`, or what the last "answer is" says.

What is taken back afterwards does not count: "Wait, it should be 6." puts 6 in its place, "That is wrong." nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformer2.verifiers.math.limits import MAX_LENGTH

__all__ = ["Found", "boxes", "final_answer"]

MAX_SCANNED = 100_000  # characters from the end of a completion
MAX_APART = 40  # characters between two boxes of one list

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_SAID = re.compile(
    r"\banswer[\s*]*(?:is\b\s*:?|:|=)[\s*:]*|^\W{0,9}final answer\W{0,9}\n[\s*]*", re.IGNORECASE | re.MULTILINE
)
_REASON = re.compile(r",?\s+(?:because|since|which|as|so|where)\b.*", re.DOTALL)
_WRONG = re.compile(
    r"\b(?:(?:scratch|ignore|disregard) that|never ?mind|oops|my mistake"
    r"|(?:this|that) (?:solution|root|answer|value) is extraneous|i miscounted|let me re(?:compute|calculate|do)"
    r"|i (?:made|was|am) (?:an? )?(?:\w+ )?(?:mistake|error|wrong|mistaken)"
    r"|(?:this|that|it|the (?:above|answer|result))(?:'s| is| was) (?:wrong|incorrect|not (?:right|correct))"
    r"|(?:this|that|it) (?:isn't|can't be|cannot be|doesn't (?:look|seem)|does not (?:look|seem)) (?:right|correct))\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    rf"{_WRONG.pattern}|\b(?:wait\b(?!,? (?:let me|we|I)\b[^.\n]{{0,20}}\b(?:verify|check))|actually|correction|hmm"
    r"|sorry|edit|apologies|i mean|make that|or rather|should have been|on second thought)\b|\bno\b[,.:]",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\bnot|n't|\b(?:cannot|can't) be|\b(?:wrong|incorrect) answer is|\brather than|\binstead of|\bmistake is)"
    r"[\s$*(\\\[]*\Z",
    re.IGNORECASE,
)
_JUDGED = re.compile(r"[\s$*)\\\]]*(?:is|was)\s+(?:wrong|incorrect|not)\b", re.IGNORECASE)
# A box that is a part of something: a factor, a power, one side of an inequality, one of several answers.
_PART_BEFORE = re.compile(
    r"(?:(?:[$=]|\\[(\[])\s*-[{(]*|[\d^|/][{(]*|[+<>]\s*|\\(?:cdot|times|neq?|sqrt|frac(?:\{\w*\})?)[\s{]*)\Z"
)
_PART_AFTER = re.compile(
    r"[)\s]*(?:\\(?:pi|cdot|times)\b|\^(?!\{?\\circ)|[+*/|]|\}\s*\{|[\s$]*(?:hundred|thousand|million|billion|dozen)"
    r"|[\s$]*and\s+\$?-?\d)"
)
_SUPPOSED = re.compile(r"\b(?:wrong|incorrect|suppos\w+|assum\w+|if|doubt)\b[^.\n]{0,20}\Z", re.IGNORECASE)
_VALUE = r"[\s*:]*(?=[$\\\d(+-])"
_RESTATED = re.compile(
    rf"(?:\b(?:no|sorry|actually|i mean|make that|or rather|edit|on second thought|should have been)\b[,:;]?{_VALUE}"
    rf"|(?<!check our )(?<!check the )(?<!check this )\banswer\s*(?:is|:)(?! not\b){_VALUE}|^\s*####{_VALUE})",
    re.IGNORECASE | re.MULTILINE,
)
_INSTEAD = re.compile(
    r"\b(?:it|that|answer|result|value|correction)(?:'s| is| should be| must be|:)[\s*:]*(?:actually |really )?"
    r"(?=[$\\\d(+-]|[A-Z]\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?;](?=\s|\*|\"|\Z)|\n")
_FILLER = re.compile(r"\A(?:therefore|thus|simply|just|clearly|indeed)\b|\\[()\[\]]|\*\*|\.\Z")
_LINK = re.compile(r"[\s$,;.*)\]\\(/|]*(?:(?:\\text\s*\{\s*)?\b(?:or|and)\b[\s$*(\\}\]]*)?", re.IGNORECASE)
_OR_MORE = re.compile(
    r"[\s$)*\]\\]*(?:\\text\s*\{\s*)?(?:\bor\b[\s$(*\\}]*(?=[-+.\d$\\]|[A-Za-z]\b)"
    r"|[,/|]\s*\$?[-+]?\.?\d[\d.,/]*\$?\s*(?:\n|\Z|\bor\b|\band\b))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Found:
    """A final answer.

    Attributes:
        text: As written; None when there is none.
        reason: Why there is none.
    """

    text: str | None
    reason: str = ""


def final_answer(completion: str) -> Found:
    r"""The last box, or the list of the last boxes when nothing but a comma, "and" or "or" stands between them."""
    completion = completion[-MAX_SCANNED:]
    boxed = list(_BOX.finditer(completion))
    opened = [box for box in boxed if not _DENIED.search(completion, max(0, box.start() - 60), box.start())]
    if boxed and not opened:
        return Found(None, "taken back")
    if not opened:
        said = [
            mark
            for mark in _SAID.finditer(completion)
            if not _SUPPOSED.search(completion, max(0, mark.start() - 40), mark.start())
        ]
        return _stated(completion, said[-1]) if said else Found(None, "no boxed answer")
    stop = _closing(completion, opened[-1].end())
    if stop is None:
        return Found(None, f"the box is not closed within {MAX_LENGTH} characters")
    start = opened[-1].start()
    if _PART_BEFORE.search(completion, max(0, start - 20), start) or _PART_AFTER.match(completion, stop + 1):
        return Found(None, "the box holds a part of an answer")
    if _OR_MORE.match(completion, stop + 1, stop + MAX_APART):
        return Found(None, "several answers")
    listed = [completion[opened[-1].end() : stop].strip()]
    for box, following in zip(opened[-2::-1], opened[:0:-1], strict=True):
        end = _closing(completion, box.end())
        if end is None or not 0 < following.start() - end <= MAX_APART:
            break
        if not _LINK.fullmatch(completion, end + 1, following.start()):
            break
        listed.insert(0, completion[box.end() : end].strip())
    if not all(listed):
        return Found(None, "the box is empty")
    return _instead(completion, stop) or Found(", ".join(listed))


def boxes(text: str) -> list[str]:
    """What stands in each closed box, in order."""
    found = []
    for box in _BOX.finditer(text):
        end = _closing(text, box.end())
        if end is not None:
            found.append(text[box.end() : end].strip())
    return found


def _stated(completion: str, mark: re.Match[str]) -> Found:
    """What stands between a mark and the end of its sentence, unless it is taken back behind that."""
    limit = stop = mark.end() + MAX_LENGTH + 1
    for end in _SENTENCE_END.finditer(completion, mark.end(), limit):
        if completion.count("$", mark.end(), end.start()) % 2 == 0:
            stop = end.start()
            break
    place = _REASON.sub("", completion[mark.end() : stop].strip())
    place = re.sub(r",?\s+not\s.*|\s\([^()\d]*\)\Z", "", _FILLER.sub(" ", place)).strip()
    return _instead(completion, stop) or (Found(place) if place else Found(None, "no boxed answer"))


def _instead(completion: str, start: int) -> Found | None:
    """What takes the place of an answer that ends at `start`; None when it stands."""
    if _JUDGED.match(completion, start + 1):
        return Found(None, "taken back")
    if restated := list(_RESTATED.finditer(completion, start)):
        return _stated(completion, restated[-1])
    doubt = _DOUBT.search(completion, start)
    if not doubt:
        return None
    said = list(_INSTEAD.finditer(completion, doubt.start()))
    if said:
        return _stated(completion, said[-1])
    return Found(None, "taken back") if _WRONG.search(completion, start) else None


def _closing(text: str, start: int) -> int | None:
    """Where the brace that was opened before `start` is closed; None when it is not, or too far away."""
    depth = 1
    for brace in _BRACES.finditer(text, start, start + MAX_LENGTH + 1):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.start()
    return None
