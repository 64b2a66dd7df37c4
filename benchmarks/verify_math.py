"""Seconds for a batch of 256 hostile mathematical answers, and what they do to a thread beside them.

    python benchmarks/run.py verify_math

The answers are those of tests/helpers/hostile_answers.py, each of which tries to hold the verifier up or to be
accepted. The heartbeat is a thread that wakes every 10 ms, as a trainer's would; its largest gap is how long verifying
held the interpreter. Honest answers are equal to their gold in another form, so that each goes through a worker.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from _common import Row

from transformer2.verifiers.math import verify_math_many

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from hostile_answers import batch

BEAT = 0.01  # seconds

FORMS = [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"),
    ("x^2 + 10x + 25", "(x+5)^2"),
    (r"2000 \sqrt{2} - 2000", r"2000(\sqrt2-1)"),
    (r"\frac{1}{5} + \frac{3}{5}i", r"\frac{1+3i}{5}"),
]


def measure(toy: bool = False) -> list[Row]:
    size = 8 if toy else 256
    honest = [FORMS[i % len(FORMS)] for i in range(size)]
    texts = [rf"\boxed{{{answer}}}" for _, answer in honest]
    verify_math_many(*zip(*[("x + 1", r"\boxed{1 + x}")] * 8, strict=True))  # warm
    start = time.perf_counter()
    right = sum(v.correct for v in verify_math_many([gold for gold, _ in honest], texts))
    honest_seconds = time.perf_counter() - start
    hostile = batch(size)
    beats = Heartbeat()
    start = time.perf_counter()
    verdicts = verify_math_many([gold for _, gold, _ in hostile], [text for _, _, text in hostile])
    seconds = time.perf_counter() - start
    gap = beats.stop()
    slow = sum("not checked within" in v.reason for v in verdicts)
    failed = sum(v.reward is None for v in verdicts)
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return [
        Row(f"{size} hostile answers, wall-clock", seconds, "s", at_most=60.0, note=f"{slow} ran out of time; {load}"),
        Row("accepted", float(sum(v.correct for v in verdicts)), "", at_most=0.0, note=f"{failed} without a verdict"),
        Row("largest gap of a heartbeat beside them", gap, "s", at_most=1.0, note=f"wakes every {1000 * BEAT:g} ms"),
        Row(f"{size} honest answers in another form", honest_seconds, "s", note=f"{right} accepted"),
    ]


class Heartbeat:
    """A thread that wakes again and again, and remembers how long it ever had to wait."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._gap = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> float:
        """End it; the largest time between two beats in seconds."""
        self._end.set()
        self._thread.join()
        return self._gap

    def _run(self) -> None:
        last = time.perf_counter()
        while not self._end.wait(BEAT):
            now = time.perf_counter()
            self._gap, last = max(self._gap, now - last), now
