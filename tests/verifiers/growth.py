"""How the time of a reader grows with the length of a text: a ratio, which a busy machine does not change."""

from __future__ import annotations

import time
from collections.abc import Callable

LARGEST = 3.0  # twice the text takes twice the time, and a reader in quadratic time four times


def growth(read: Callable[[str], object], text: Callable[[int], str], size: int = 5_000) -> float:
    """Time of 2n characters over time of n; the smallest of a few, since noise only adds to either."""
    ratios = []
    for _ in range(5):
        seconds = [min(_seconds(read, text(n)) for _ in range(2)) for n in (size, 2 * size)]
        ratios.append(seconds[1] / max(seconds[0], 1e-3))
        if ratios[-1] < LARGEST:
            break
    return min(ratios)


def _seconds(read: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    read(text)
    return time.process_time() - start
