"""Is the result better than what it is compared with, on the same questions? Two-sided p-values.

    right or wrong     exact McNemar: of the questions on which the two differ, gained and lost are equally likely
    scores in between  the same for differences of any size: by the null hypothesis each question's difference d is as
                       likely -d; p is the share of sign patterns with |sum| at least as large as that observed

The second is the first where all differences are 0 or 1. It is exact for up to 16 questions that differ; beyond, it is
estimated from 100,000 drawn patterns (fewer where more than 200 differences are all different), the observed one
counted among them: p is never below 1e-5 then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb

import torch

__all__ = ["PERMUTATION", "both_scored", "is_soft", "paired_p"]

PERMUTATION = "sign-flip permutation"
EXACT_UP_TO, DRAWS, CHUNK, MOST_NUMBERS = 16, 100_000, 2000, 20_000_000


def both_scored(first: Iterable[float | None], second: Iterable[float | None]) -> tuple[list[float], list[float]]:
    """Credits of the same questions, of those alone that have one on both sides."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def is_soft(credits: Iterable[float]) -> bool:
    """Whether some answers are neither right nor wrong."""
    return any(credit not in (0, 1) for credit in credits)


def paired_p(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p-value of a difference between two sets of verdicts on the same questions.

    Args:
        before: Credits (`Verdict.credit`), one per question.
        after: The same questions, in the same order.

    Returns:
        The probability of a difference at least this large if each question had favoured either side alike; 1 where
        nothing differs.
    """
    if is_soft([*before, *after]):
        return _sign_flip_p([a - b for b, a in zip(before, after, strict=True)])
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    flips = gained + lost
    # Integers throughout: 2**flips overflows a float beyond about a thousand flips.
    tail = sum(comb(flips, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**flips)


def _sign_flip_p(differences: Sequence[float]) -> float:
    d_N = torch.tensor([d for d in differences if abs(d) > 1e-9], dtype=torch.float64)
    n, least = len(d_N), abs(float(d_N.sum())) - 1e-9  # equal sums may differ in their last bit
    if n <= EXACT_UP_TO:
        patterns_FN = (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()
        return float((((1 - 2 * patterns_FN) @ d_N).abs() >= least).double().mean())
    # Of the c questions that differ by as much, some Binomial(c, 1/2) keep their sign: one number for all of them.
    sizes_M, counts_M = (d_N.abs() * 1e9).round().unique(return_counts=True)
    generator = torch.Generator().manual_seed(0)
    chunks, reached = max(1, min(DRAWS, MOST_NUMBERS // len(sizes_M)) // CHUNK), 0
    for _ in range(chunks):
        trials_FM = counts_M.double().expand(CHUNK, -1)
        kept_FM = torch.binomial(trials_FM, torch.full_like(trials_FM, 0.5), generator=generator)
        reached += int((((2 * kept_FM - trials_FM) @ sizes_M / 1e9).abs() >= least).sum())
    return (reached + 1) / (chunks * CHUNK + 1)
