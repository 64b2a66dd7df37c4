r"""Mathematical answers in a completion: the last box, the list of the last boxes, or what "the answer is" says.

Where the final answer stands, `verifiers.final` says; this module reads an expression there. Behind a box, words are no
answer ("the answer is an integer"), only what looks like mathematics is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformer2.verifiers.boxes import BOX, MAX_BOX
from transformer2.verifiers.final import Final, Reader, final_answer
from transformer2.verifiers.math.latex import normal
from transformer2.verifiers.math.limits import unreadable
from transformer2.verifiers.phrases import BECAUSE

__all__ = ["Written", "final_expression"]

_DOLLARS = re.compile(r"\$[^$]{1,200}\$")
_SENTENCE_END = re.compile(r"(?<!\\)[.!?;](?=\s|\*|\"|\Z)")
_LEADS = re.compile(
    r"\A(?:(?:therefore|thus|simply|just|clearly|indeed|really|actually|equal to|equals)\b[\s:,]*)+", re.IGNORECASE
)
_MARKS = re.compile(r"\\[()\[\]]|\*\*|\A[\s:*]+|[\s*]+\Z|\.\Z")
_LEFT_OUT = re.compile(r"\s\([^()\d]*\)\Z|,?\s+so\b.*", re.DOTALL)
# What begins like mathematics; and a name, as in "x = 5" or "(C)".
_VALUE = re.compile(r"[\s*:(]*(?:[$\\\d+-]|\.\d|\(|\[|[A-Za-z](?:_\{?\w\}?)?\s*=|[A-Z]\b)")
_COMMANDS = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+|\$")
_UNITS = re.compile(  # "6 square feet", but no part of a sentence
    r"(?<=[\d})$])(?:\s+(?!(?:of|than|more|less|times|is|are|was|were|or|and|not|does|do|did|gives?|has|have|works?|fails?|satisf\w+"
    r"|makes?|must|can\w*|could|would|will|should|which|that|when|if|for|we|to|from|by|in|on|with|as|at|so)\b)[A-Za-z]{2,}){1,3}\Z"
)
_WORD = re.compile(r"[A-Za-z]{2,}")
_NUMBER_LISTED = re.compile(r"\s*\$?[-+]?\.?\d[\d.,/]*\$?\s*(?:[\n.]|\Z|\bor\b|\band\b)")
# "The answer is correct", "... is in the form a + b", "... is an integer".
_NO_VALUE = re.compile(
    r"(?:indeed|also|still)?\s*(?:in|of|correct|right|wrong|incorrect|helpful|clear"
    r"|obvious|unique|as follows|given|found|valid|not|never|an?|the same|maybe|perhaps)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"\A[A-Za-z](?:_\{\w\})?=(?=[^=]+\Z)")


_FULL_WIDTH = dict.fromkeys(range(0xFF10, 0xFF5B), "\ufffd")  # which LaTeX does not read as digits


@dataclass(frozen=True)
class Written:
    """An answer as it is written; two are one where their normal forms are, without the name in front."""

    text: str = field(compare=False)
    key: str


class _Expressions(Reader[Written]):
    """Reads one expression in one place.

    Args:
        boxed: Whether the text has a box.
    """

    unusable = "not a usable answer"
    unclosed = f"the box is not closed within {MAX_BOX} characters"

    def __init__(self, boxed: bool) -> None:
        self.boxed = boxed

    def read(self, place: str, kind: str) -> Final[Written]:
        """The expression in a place."""
        if kind == "boxed":
            return _written(place.strip()) if place.strip() else Final(None, "the box is empty")
        if kind in ("line", "chosen") or r"\boxed" in place or (kind == "listed" and not _NUMBER_LISTED.match(place)):
            return Final(None)
        marked, place = kind in ("hash", "said", "heading", "final"), _until_reason(place)
        if marked and not self.boxed and place and not _NO_VALUE.match(place):
            return _written(place)
        return _written(place) if _is_mathematics(place, marked) else Final(None)

    def joined(self, answers: Sequence[Written]) -> Written | None:
        """A list of the answers, as if one box held them."""
        return _written(", ".join(answer.text for answer in answers)).value


def final_expression(completion: str) -> Final[Written]:
    """The expression that a completion gives as its final answer."""
    first, *rest = completion.split("[asy]")
    completion = first + "".join(drawn.partition("[/asy]")[2] for drawn in rest)
    text = _DOLLARS.sub(
        lambda m: m[0] if "\n\n" in m[0] else m[0].replace("\n", " "), completion.translate(_FULL_WIDTH)
    )
    return final_answer(text, _Expressions(BOX.search(text) is not None))


def _written(text: str) -> Final[Written]:
    return Final(Written(text, text if unreadable(text) else _NAME.sub("", normal(text))))


def _until_reason(place: str) -> str:
    """A place up to the end of its sentence outside of dollars, without words around the answer."""
    for end in _SENTENCE_END.finditer(place):
        if place.count("$", 0, end.start()) % 2 == 0:
            place = place[: end.start()]
            break
    if (reason := BECAUSE.search(place)) and place.count("$", 0, reason.start()) % 2 == 0:
        place = place[: reason.start()]
    return _MARKS.sub("", _LEADS.sub("", _LEFT_OUT.sub("", place.strip()))).strip()


def _is_mathematics(place: str, marked: bool) -> bool:
    """Whether a place is an expression, perhaps with a unit, and no sentence about one."""
    if not _VALUE.match(place):
        return False
    bare = _UNITS.sub("", place)
    return re.search(r"[A-Za-z\d]", bare) is not None and not _WORD.search(_COMMANDS.sub(" ", bare))
