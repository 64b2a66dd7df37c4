"""The sampling error of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def mcnemar_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact McNemar test of two sets of verdicts on the same questions.

    Args:
        before: Right or wrong, one per question.
        after: The same questions, in the same order.

    Returns:
        The probability of a difference at least this large if right-to-wrong and wrong-to-right flips were equally
        likely; 1 when nothing flipped.
    """
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    flips = gained + lost
    # Integers throughout: 2**flips overflows a float beyond about a thousand flips.
    tail = sum(comb(flips, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**flips)
