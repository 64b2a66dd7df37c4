"""Run benchmarks, print their tables, keep the figures under benchmarks/results/.

    python benchmarks/run.py                 all of them
    python benchmarks/run.py layer kl        some of them; the month's file keeps the others' figures

Figures are ratios measured in one run, on one thread; see _common.py for how. A target is PERFORMANCE's goal.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _common import machine
from _results import NAMES, keep, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; none runs all")
    parser.add_argument(
        "--toy", action="store_true", help="seconds instead of minutes; figures mean nothing, none kept"
    )
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}")
    torch.set_num_threads(1)
    for name in args.names or NAMES:
        start = time.perf_counter()
        rows = importlib.import_module(name).measure(toy=args.toy)
        seconds = time.perf_counter() - start
        print(f"\n## {name} ({seconds:.0f} s)\n\n{table(rows)}", flush=True)
        if not args.toy:
            keep(name, rows, machine())


if __name__ == "__main__":
    main()
