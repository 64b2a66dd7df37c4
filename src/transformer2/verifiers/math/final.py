r"""Where the final answer of a completion stands: the last `\boxed{...}`, or what the last "answer is" says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformer2.verifiers.math.limits import MAX_LENGTH

__all__ = ["Found", "boxes", "final_answer"]

MAX_SCANNED = 100_000  # characters from the end of a completion
MAX_APART = 40  # characters between two boxes of one list

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_SAID = re.compile(r"\banswer[\s*]*(?:is\b\s*:?|:|=)[\s*:]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?;](?=\s|\*|\"|\Z)|\n")
_FILLER = re.compile(r"\A(?:therefore|thus|simply|just)\b|\\[()\[\]]|\*\*|\.\Z")
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
    opened = list(_BOX.finditer(completion))
    if not opened:
        return _said(completion)
    stop = _closing(completion, opened[-1].end())
    if stop is None:
        return Found(None, f"the box is not closed within {MAX_LENGTH} characters")
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
    return Found(", ".join(listed)) if all(listed) else Found(None, "the box is empty")


def boxes(text: str) -> list[str]:
    """What stands in each closed box, in order."""
    found = []
    for box in _BOX.finditer(text):
        end = _closing(text, box.end())
        if end is not None:
            found.append(text[box.end() : end].strip())
    return found


def _said(completion: str) -> Found:
    said = list(_SAID.finditer(completion))
    if not said:
        return Found(None, "no boxed answer")
    last = said[-1]
    limit = last.end() + MAX_LENGTH + 1
    end = _SENTENCE_END.search(completion, last.end(), limit)
    place = completion[last.end() : end.start() if end else limit].strip()
    place = _FILLER.sub(" ", place).strip()
    return Found(place) if place else Found(None, "no boxed answer")


def _closing(text: str, start: int) -> int | None:
    """Where the brace that was opened before `start` is closed; None when it is not, or too far away."""
    depth = 1
    for brace in _BRACES.finditer(text, start, start + MAX_LENGTH + 1):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.start()
    return None
