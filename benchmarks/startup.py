"""Seconds a user waits: for help, for the first training step of the demo, for the demo's table.

    python benchmarks/run.py startup

Commands run in a fresh process with an empty cache and one thread; figures are CPU seconds of that process, which is
what a free core takes, whatever else the machine does; the wall-clock of the day stands beside them. The first step
is that of a run that stops after it, so the figure includes its (tiny) test and its end.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from _common import Row
from _models import embedded_model

FIRST = "fit --config conf/tiny_math.yaml: command to first training step"
WHOLE = "fit --config conf/tiny_math.yaml: command to table"
MISSING = "NOT MEASURED: the embedded model's weights are not built; run python -m transformer2.tiny.build"


def measure(toy: bool = False) -> list[Row]:
    helps = [_seconds("--help") for _ in range(1 if toy else 9)]
    rows = [_row("transformer2 --help", helps, 0.7)]
    limits = {FIRST: 20.0, WHOLE: 180.0}
    if toy or embedded_model() is None:
        why = "left out at toy size" if toy else MISSING
        return rows + [Row(what, None, "s", at_most=limit, note=why) for what, limit in limits.items()]
    short = ("--trainer.max_steps", "1", "--data.test_limit", "2")
    rows.append(_row(FIRST, [_demo(*short) for _ in range(3)], limits[FIRST]))
    return [*rows, _row(WHOLE, [_demo()], limits[WHOLE])]


def _row(what: str, runs: list[tuple[float, float]], limit: float) -> Row:
    """The median of (CPU seconds, wall-clock) pairs as a row."""
    cpu, wall = (statistics.median(column) for column in zip(*runs, strict=True))
    note = f"wall-clock {wall:.1f} s at load average {os.getloadavg()[0]:.1f}"
    return Row(what, cpu, "s", at_most=limit, note=note)


def _demo(*options: str) -> tuple[float, float]:
    """The README's first command, in a scratch folder."""
    with tempfile.TemporaryDirectory() as scratch:
        run = ("--run_dir", f"{scratch}/run", "--quiet")
        return _seconds("fit", "--config", "conf/tiny_math.yaml", *run, *options, cache=scratch)


def _seconds(*command: str, cache: str | None = None) -> tuple[float, float]:
    """CPU seconds and wall-clock of one command."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"TRANSFORMER2_CACHE": cache} if cache else {})
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "transformer2", *command], check=True, env=env, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return cpu, time.perf_counter() - start
