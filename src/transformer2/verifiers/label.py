"""Labels: is the whole answer the one right category?

Nothing is searched for: "math" is the category math, "It is math", "math code" and "mathematics" are none.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformer2.types import Verdict

__all__ = ["find_label", "verify_label"]


def find_label(labels: Sequence[str], completion: str) -> str | None:
    """The label that a text is, whole and alone (case, outer blanks and a final full stop aside), else None."""
    word = completion.strip().removesuffix(".").lower()
    return next((label for label in labels if label.lower() == word), None)


def verify_label(gold: str, labels: Sequence[str], completion: str) -> Verdict:
    """Whether a completion is the gold label and nothing else.

    Raises:
        ValueError: `gold` is no label: the data set is broken, not the completion.
    """
    if gold not in labels:
        raise ValueError(f"gold label {gold!r} is not among {', '.join(labels)}")
    found = find_label(labels, completion)
    if found is None:
        return Verdict.of(False, None, "not a category")
    return Verdict.of(found == gold, found, "equal" if found == gold else f"expected {gold}")
