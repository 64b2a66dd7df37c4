"""The GPU rows of the goals in one go of at most 9 minutes, on random weights of Llama-3-8B's shape.

    python benchmarks/gpu_check.py                          all parts; the table, and results/<gpu>_<yyyymm>.{json,md}
    python benchmarks/gpu_check.py correctness plan         some of them; the file keeps the others' figures
    python benchmarks/gpu_check.py --toy                    tiny shapes, on a CPU too; figures mean nothing, none kept

Nothing is downloaded, and nothing but the core packages is needed. Parts run in order of importance in a process of
their own. A part that outlasts its share of the time is ended, one that fails says so in one line, and in both cases
the others run in a fresh process, whose GPU memory is empty and whose CUDA is sound. Time that a part does not use
is the next one's. Figures are kept as they come, so that whatever ends this loses none.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from _results import Row, keep, table

# Seconds of each part, in order of importance; imports and the start of CUDA are the first one's. Together under 9
# minutes, with room for ending the last one.
SHARES = {
    "correctness": 75,
    "train_step": 120,
    "plan": 70,
    "population": 75,
    "engines": 65,
    "nf4": 45,
    "decomposition": 80,
}
GRACE = 2  # seconds in which a process that has nothing left to do ends by itself
LATE = "its time was up"
LEAKED = 2**30  # bytes that a part may leave on the GPU; beyond, the next one starts in a fresh process


@dataclass(frozen=True)
class Started:
    """A process is ready: its machine, and the rows that its parts will fill."""

    machine: Mapping[str, Any]
    planned: Mapping[str, Mapping[str, Row]]


@dataclass(frozen=True)
class Measured:
    """One figure."""

    part: str
    key: str
    figure: float | None
    note: str


@dataclass(frozen=True)
class Ended:
    """A part is over; `error` is empty where it went well."""

    part: str
    error: str


class NoGPU(Exception):
    """There is no CUDA device."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(SHARES)}; none runs all")
    parser.add_argument("--toy", action="store_true", help="tiny shapes; figures mean nothing, none kept")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in SHARES]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(SHARES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the table is printed all the same
    check = Check({part: SHARES[part] for part in SHARES if part in (args.parts or SHARES)}, args.toy)
    try:
        check.run()
    except NoGPU:
        print("gpu_check: there is no CUDA device here; --toy tries the script without one", file=sys.stderr)
        return 2
    finally:
        if check.rows:
            print(table([row for rows in check.rows.values() for row in rows.values()]), flush=True)
    return 1 if set(check.errors.values()) - {LATE} else 0


class Check:
    """The waiting side: one process at a time, its messages, and what is known so far.

    Args:
        shares: Seconds of each part, in order; the parts are modules of `folder`.
        toy: Tiny shapes, nothing kept.
        folder: Package of the parts.

    Attributes:
        rows: Rows of every part by key, filled in as figures come.
        errors: One line for every part that failed; `LATE` for one that was ended.
    """

    def __init__(self, shares: Mapping[str, float], toy: bool, folder: str = "on_gpu") -> None:
        self.shares, self.toy, self.folder = shares, toy, folder
        self.machine: Mapping[str, Any] = {}
        self.rows: dict[str, dict[str, Row]] = {}
        self.errors: dict[str, str] = {}

    def run(self) -> None:
        """All parts, each until the moment at which its share and those before it are used up.

        Raises:
            NoGPU: And not at toy size.
        """
        start, used, left = time.monotonic(), 0.0, list(self.shares)
        deadlines = {part: start + (used := used + share) for part, share in self.shares.items()}
        while left:
            with _process(left, self.toy, self.folder) as channel:
                while left and (ended := self._follow(channel, left[0], deadlines[left[0]])):
                    self._end(left.pop(0), ended)
                    if ended.error:
                        break  # its process is gone, or not to be trusted

    def _follow(self, channel: Connection, part: str, deadline: float) -> Ended | None:
        """Take messages until the part is over; None when the process gave up its turn to a fresh one."""
        while channel.poll(max(0.0, deadline - time.monotonic())):
            try:
                message = channel.recv()
            except EOFError:
                return Ended(part, "its process died")
            if message is None:
                return None
            if isinstance(message, NoGPU):
                raise message
            if isinstance(message, Ended):
                return message
            if isinstance(message, Started):
                self._start(message)
            else:
                row = self.rows[message.part][message.key]
                self._fill(message.part, message.key, replace(row, measured=message.figure, note=message.note))
        return Ended(part, LATE)

    def _start(self, started: Started) -> None:
        self.machine = started.machine
        for part, rows in started.planned.items():
            self.rows.setdefault(part, {key: replace(row, note="not reached") for key, row in rows.items()})

    def _fill(self, part: str, key: str, row: Row) -> None:
        self.rows[part][key] = row
        print(f"{row.what}: {row.figure}   ({row.note})", file=sys.stderr, flush=True)
        self._keep(part)

    def _end(self, part: str, ended: Ended) -> None:
        if not ended.error:
            return
        self.errors[part] = ended.error
        print(f"{part}: {ended.error}", file=sys.stderr, flush=True)
        for key, row in self.rows.get(part, {}).items():
            if row.note == "not reached":
                self.rows[part][key] = replace(row, note=f"not reached: {ended.error}")
        self._keep(part)

    def _keep(self, part: str) -> None:
        if not self.toy and part in self.rows:
            keep(f"gpu_check: {part}", list(self.rows[part].values()), self.machine)


@contextlib.contextmanager
def _process(parts: list[str], toy: bool, folder: str) -> Iterator[Connection]:
    """A process at work on these parts; it is ended with the context, wherever it is."""
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=work, args=(theirs, parts, toy, folder), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.join(GRACE)
        process.kill()
        process.join()
        ours.close()


def work(channel: Connection, parts: list[str], toy: bool, folder: str) -> None:
    """The working side: run the parts in turn and send what they measure, until one fails."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from _common import DEVICE, allocated, free_memory, machine

    if DEVICE.type != "cuda" and not toy:
        channel.send(NoGPU())
        return
    modules = {part: importlib.import_module(f"{folder}.{part}") for part in parts}
    channel.send(Started(machine(), {part: module.planned(toy) for part, module in modules.items()}))
    for part, module in modules.items():
        try:
            for key, figure, note in module.measure(toy):
                channel.send(Measured(part, key, figure, note))
        except Exception as e:
            channel.send(Ended(part, _one_line(e)))
            return
        channel.send(Ended(part, ""))
        free_memory()
        if allocated() > LEAKED:
            print(f"{part} left {allocated() / 1e9:.1f} GB on the GPU", file=sys.stderr)
            channel.send(None)
            return


def _one_line(e: Exception) -> str:
    words = " ".join(str(e).replace("|", "/").split())  # a bar would end a cell of the table
    return f"{type(e).__name__}: {words[:200]}"


if __name__ == "__main__":
    sys.exit(main())
