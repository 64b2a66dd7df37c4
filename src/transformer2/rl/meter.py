"""Sums and seconds of one optimizer step, gathered while it runs and logged once at its end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StepMeter:
    """Accumulates named sums and wall-clock seconds; `reset` starts the next step."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: float) -> None:
        """Add `value` to the sum of that name."""
        self.sums[name] += value

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside. On a GPU these are launch times unless the work ends in a host read."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def mean(self, name: str, per: str) -> float:
        """One sum over another; NaN when there was nothing to divide by."""
        return self.sums[name] / self.sums[per] if self.sums.get(per) else float("nan")

    def reset(self) -> None:
        """Forget everything."""
        self.sums.clear()
        self.seconds.clear()
