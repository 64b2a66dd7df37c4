"""Labels: which one category does an answer name?

"math", "**Math**", "- math" and "The request is math." name the category math. "mathematics" is another word, "not
math" and "non-math" name no category, and an answer that names two is not a choice, whichever of them is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformer2.types import Verdict
from transformer2.verifiers.final import Final, readable

__all__ = ["find_label", "verify_label"]

_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore)\b,?(?:\s+(?:it|this|the (?:request|answer|category))(?:'s|\s+is))?\W*\Z",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"(?<!\w)_+(?=\w)|(?<=[^\W_])_+(?!\w)")  # of "_math_"; tiny_math is a name
# Within the clause of the name.
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|no|non|nothing|anything but|except|excluding|far from|unlike|hardly"
    r"|barely|without|lacks?|lacking|(?<!no )doubt|unless|instead of|rather than|other than|apart from)|n['’]t)\b"
    r"(?! doubt| only)[^.,:;!?\n]{0,60}\Z",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[^\w.,:;!?\n]*\b(?:is|was|would|does|can)(?:\s*not\b|n['’]t\b|\s+(?:be\s+)?(?:wrong|incorrect|false)\b)|-free\b",
    re.IGNORECASE,
)
# "Is it code?", unless the text says yes; and whatever is asked and then answered with no
_ASKED = re.compile(
    r"(?:^|(?<=[.!?]))\s{0,9}(?:(?:is|are|was|could|would|should|can|does)\b[^.!?\n]{0,80}\?(?!\W{0,9}yes\b)(?:\s{0,9}no(?:pe)?\b)?"
    r"|[^.!?\n]{1,80}\?\s{0,9}no(?:pe)?\b)",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER = re.compile(
    r"(?:^|(?<=[.!?]))[^\w\n]{0,20}(?:(?:so|thus|therefore),?\s+)?(?:(?:the|my)\s+)?(?:final\s+)?(?:answer|category|label)\b[\s*]*(?:is\b|:|=)",
    re.I | re.M,
)
# Labels in another sense: "the other kinds", "each other", "other than", "on the other hand"; "a zip code"
_OTHERWISE = re.compile(
    r"\bother\s+(?:than|hand|\w+s)\b(?<!\bis)(?<!\bwas)|\beach\s+other\b"
    r"|\b(?:zip|post(?:al)?|area|country|dial+ing|dress|penal|criminal|civil|moral|honou?r|morse|promo|discount|coupon|voucher)"
    r"[\s_-]+code\b|\bcode\s+of\s+(?:conduct|ethics|law)\b",
    re.IGNORECASE,
)


def find_label(labels: Sequence[str], completion: str) -> str | None:
    """The one label that a text names as a word of its own, whatever its case and markup; None for none, or several.

    A label of several words may be joined by blanks, hyphens or underscores, and hides the shorter ones in it.
    """
    text = _ASKED.sub(" ", _EMPHASIS.sub(" ", readable(completion)))
    if marked := _ANSWER.search(text):
        text = text[marked.end() :]  # what stands before are reasons
    longest = sorted(labels, key=len, reverse=True)
    parts = (r"[\s_-]+".join(map(re.escape, re.split(r"[\s_-]+", label))) for label in longest)
    named = list(re.finditer(rf"(?<!\w)(?:{'|'.join(f'({part})' for part in parts)})(?!\w)", text, re.IGNORECASE))
    words = [m.span() for m in _OTHERWISE.finditer(text)]
    named = [m for m in named if not any(s <= m.start() and m.end() <= e and m.span() != (s, e) for s, e in words)]
    stated = [match for match in named if not _is_denied(text, match)]
    if len({match.lastindex for match in named}) > 1:  # "neither math nor code, so other"
        concluded = [match for match in stated if _CONCLUDES.search(text, max(0, match.start() - 40), match.start())]
        return None if len(stated) != 1 or concluded != stated else longest[(stated[0].lastindex or 1) - 1]
    if not named or len(stated) != len(named):
        return None
    return longest[(named[0].lastindex or 1) - 1]


def _is_denied(text: str, match: re.Match[str]) -> bool:
    """Whether a label is denied within its clause."""
    before = _DENIED_BEFORE.search(text, max(0, match.start() - 80), match.start())
    compound = re.search(r"\w-\Z", text[max(0, match.start() - 2) : match.start()])  # "pseudo-code" is another word
    return before is not None or compound is not None or _DENIED_AFTER.match(text, match.end()) is not None


def verify_label(gold: str, labels: Sequence[str], completion: str) -> Verdict:
    """Whether the one label that a completion names is the gold one.

    Raises:
        ValueError: `gold` is not a label: the data set is broken, not the completion.
    """
    if gold not in labels:
        raise ValueError(f"gold label {gold!r} is not among {', '.join(labels)}")
    return Final(find_label(labels, completion), "not a category").verdict(gold)
