"""The sandbox: programs a second, and what 256 endless loops cost, leave behind, and do to the trainer's heartbeat.

    python benchmarks/run.py sandbox

Wall-clock on all cores: other work on the machine counts against it, so the load average is shown with the figures.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from _common import Row

from transformer2.sandbox import Program, Sandbox

HONEST = Program(
    "import math\n\ndef f(n):\n    return [math.isqrt(i) for i in range(n)]\n",
    ("assert f(5) == [0, 1, 1, 1, 2]", "assert len(f(1000)) == 1000"),
    ("f",),
)
ENDLESS = Program("def f(n):\n    while True:\n        pass\n", ("assert f(5)",), ("f",))


def measure(toy: bool = False) -> list[Row]:
    sandbox = Sandbox()
    sandbox.run([HONEST] * sandbox.pool.size)
    cores, note = sandbox.pool.size, f"level {sandbox.level}, load average {os.getloadavg()[0]:.1f}"
    honest, endless = (20, 2) if toy else (400, 256)
    start = time.perf_counter()
    passed = sum(o.outcome == "passed" for o in sandbox.run([HONEST] * honest))
    rows = [
        Row(f"programs a second on {cores} cores", passed / (time.perf_counter() - start), "/s", at_least=60, note=note)
    ]
    with Heartbeat() as heartbeat:
        start = time.perf_counter()
        stopped = sum(o.outcome == "timeout" for o in sandbox.run([ENDLESS] * endless))
        seconds = time.perf_counter() - start
    limit = endless * ENDLESS.cpu_seconds / cores
    sandbox.pool.close()
    time.sleep(0.5)
    return [
        *rows,
        Row(f"{endless} endless loops, those stopped in time", float(stopped), "", at_least=endless),
        Row(
            "the same, seconds over loops x CPU limit / cores",
            seconds / limit,
            "x",
            at_most=1.5,
            note=f"{seconds:.0f} s",
        ),
        Row("the same, largest gap of a heartbeat thread", heartbeat.largest, "s", at_most=1.0),
        Row("the same, processes left behind", float(len(living())), "", at_most=0),
    ]


class Heartbeat:
    """A thread that wakes every 20 ms, as a trainer's would, and knows its largest gap in seconds."""

    def __enter__(self) -> Heartbeat:
        self.largest, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        last = time.perf_counter()
        while not self._stop.wait(0.02):
            now = time.perf_counter()
            self.largest, last = max(self.largest, now - last), now


def living() -> list[str]:
    """Children of this process and their descendants, that are no zombies."""
    parents, found = {}, [os.getpid()]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return [str(pid) for pid in found[1:]]
