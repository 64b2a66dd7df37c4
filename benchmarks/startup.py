"""Seconds a user waits: for help, for the first training step of the demo, for the demo's table.

    python benchmarks/run.py startup

Commands run in a fresh process with an empty cache. The goals are of wall-clock on two free cores; other work on the
machine counts against them, so the CPU seconds of one thread, which a free core would take, are shown
alongside, without a target. The first step is that of a run that stops after it: its (tiny) test and its end are
included.
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
    rows = _rows("transformer2 --help", [_seconds("--help", threads=1) for _ in range(1 if toy else 9)], 0.7)
    if toy or embedded_model() is None:
        why = "left out at toy size" if toy else MISSING
        return [*rows, Row(FIRST, None, "s", at_most=20.0, note=why), Row(WHOLE, None, "s", at_most=180.0, note=why)]
    short = ("--trainer.max_steps", "1", "--data.test_limit", "2")
    rows += _rows(FIRST, [_demo(1, *short) for _ in range(3)], 20.0)
    rows += _rows(f"{FIRST}, default threads", [_demo(None, *short)], 20.0)
    return [*rows, *_rows(WHOLE, [_demo(1)], 180.0)]


def _rows(what: str, runs: list[tuple[float, float]], limit: float) -> list[Row]:
    """Medians of (CPU seconds, wall-clock) pairs."""
    cpu, wall = (statistics.median(column) for column in zip(*runs, strict=True))
    note = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return [Row(f"{what}, wall-clock", wall, "s", at_most=limit, note=note), Row(f"{what}, CPU seconds", cpu, "s")]


def _demo(threads: int | None, *options: str) -> tuple[float, float]:
    """The README's first command, in a scratch folder."""
    with tempfile.TemporaryDirectory() as scratch:
        run = ("--run_dir", f"{scratch}/run", "--quiet")
        return _seconds("fit", "--config", "conf/tiny_math.yaml", *run, *options, threads=threads, cache=scratch)


def _seconds(*command: str, threads: int | None, cache: str | None = None) -> tuple[float, float]:
    """CPU seconds and wall-clock of one command."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    env |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    env |= {"TRANSFORMER2_CACHE": cache} if cache else {}
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "transformer2", *command], check=True, env=env, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return cpu, time.perf_counter() - start
