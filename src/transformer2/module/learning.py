"""The learning curve of a run, for report.json."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LearningCurve:
    """Validation accuracy against steps and the seconds spent in them; validations and tests are not counted.

    Attributes:
        seconds: Wall-clock seconds of all steps so far, of this process.
        cpu_seconds: CPU seconds of them, of all its threads.
        points: `step`, `accuracy`, `se`, `seconds` and `cpu_seconds` of each validation, that before step 1 too.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    points: list[dict[str, float]] = field(default_factory=list)
    _started: tuple[float, float] | None = None

    def start(self) -> None:
        """A step begins."""
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """A step has ended."""
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started[0]
            self.cpu_seconds += time.process_time() - self._started[1]
            self._started = None

    def add(self, step: int, accuracy: float, se: float) -> None:
        """A validation after `step` steps."""
        spent = {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}
        self.points.append({"step": step, "accuracy": round(accuracy, 6), "se": round(se, 6), **spent})

    def state_dict(self) -> dict[str, Any]:
        """For a run that goes on from here."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "points": [*self.points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; older ones kept no curve."""
        self.seconds, self.cpu_seconds = state.get("seconds", 0.0), state.get("cpu_seconds", 0.0)
        self.points = [*state.get("points", ())]
