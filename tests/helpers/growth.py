"""How the time of a reader grows with the length of a text: a ratio, which a busy machine does not change."""

from __future__ import annotations

import time
from collections.abc import Callable

LARGEST = 8.0  # four times the text takes four times the time, and a reader in quadratic time sixteen times


def growth(read: Callable[[str], object], text: Callable[[int], str], size: int = 5_000) -> float:
    """Time of 4n characters over time of n; the smallest of a few, since noise only adds to either.

    The short text is read twice: noise in its time would hide growth. Noise in the other's only asks for another ratio.
    """
    ratios = []
    for _ in range(10):
        short = min(_seconds(read, text(size)) for _ in range(2))
        ratios.append(_seconds(read, text(4 * size)) / max(short, 1e-3))
        if ratios[-1] < LARGEST:
            break
    return min(ratios)


def _seconds(read: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    read(text)
    return time.process_time() - start
