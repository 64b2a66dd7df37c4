"""Labels: which one category does an answer name?

"math", "**Math**", "- math" and "The request is math." name the category math. "mathematics" is another word, "not
math" and "non-math" name no category, and an answer that names two is no choice, whichever of them is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformer2.types import Verdict
from transformer2.verifiers.final import readable

__all__ = ["find_label", "verify_label"]

_EMPHASIS = re.compile(r"(?<!\w)_+(?=\w)|(?<=[^\W_])_+(?!\w)")  # of "_math_"; tiny_math is a name
# Within the clause of the name.
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|no|non)|n['’]t)\b(?! doubt| only)[^.,:;!?\n]{0,60}\Z", re.IGNORECASE
)
_DENIED_AFTER = re.compile(
    r"[^\w.,:;!?\n]*\b(?:is|was|would|does|can)(?:\s*not\b|n['’]t\b|\s+(?:wrong|incorrect)\b)", re.IGNORECASE
)


def find_label(labels: Sequence[str], completion: str) -> str | None:
    """The one label that a text names as a word of its own, whatever its case and markup; None for none, or several.

    A label of several words may be joined by blanks, hyphens or underscores, and hides the shorter ones in it.
    """
    text = _EMPHASIS.sub(" ", readable(completion))
    longest = sorted(labels, key=len, reverse=True)
    parts = (r"[\s_-]+".join(map(re.escape, re.split(r"[\s_-]+", label))) for label in longest)
    named = list(re.finditer(rf"(?<!\w)(?:{'|'.join(f'({part})' for part in parts)})(?!\w)", text, re.IGNORECASE))
    if len({match.lastindex for match in named}) != 1:
        return None
    for match in named:
        if _DENIED_BEFORE.search(text, max(0, match.start() - 80), match.start()) or _DENIED_AFTER.match(
            text, match.end()
        ):
            return None
    return longest[(named[0].lastindex or 1) - 1]


def verify_label(gold: str, labels: Sequence[str], completion: str) -> Verdict:
    """Whether the one label that a completion names is the gold one.

    Raises:
        ValueError: `gold` is no label: the data set is broken, not the completion.
    """
    if gold not in labels:
        raise ValueError(f"gold label {gold!r} is not among {', '.join(labels)}")
    found = find_label(labels, completion)
    if found is None:
        return Verdict.of(False, None, "not a category")
    return Verdict.of(found == gold, found, "equal" if found == gold else f"expected {gold}")
