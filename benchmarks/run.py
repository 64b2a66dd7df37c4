"""Run benchmarks, print their tables, keep the figures under benchmarks/results/.

    python benchmarks/run.py                 all of them
    python benchmarks/run.py layer kl        some of them; the month's file keeps the others' figures

Figures are ratios measured in one run, on one thread; see _common.py for how. A target is PERFORMANCE's goal.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _common import Row, machine, machine_kind

HERE = Path(__file__).parent
NAMES = (
    "layer",
    "train_step",
    "decomposition",
    "kl",
    "zrows",
    "share",
    "startup",
    "rl_step",
    "verify_math",
    "sandbox",
    "quantised",
)


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
            keep(name, rows)


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| what | measured | target | holds | |", "|---|---|---|---|---|"]
    for row in rows:
        holds = {True: "yes", False: "NO", None: "" if row.measured is not None else "not measured"}[row.holds]
        lines.append(f"| {row.what} | {figure(row)} | {row.target} | {holds} | {row.note} |")
    return "\n".join(lines)


def figure(row: Row) -> str:
    """A figure with its unit, three digits."""
    return "-" if row.measured is None else f"{row.measured:.3g} {row.unit}".strip()


def keep(name: str, rows: list[Row]) -> None:
    """Put one benchmark's rows into this month's file, JSON and Markdown."""
    today = datetime.date.today()
    path = HERE / "results" / f"{machine_kind()}_{today:%Y%m}.json"
    path.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"benchmarks": {}}
    found["machine"] = machine()
    found["benchmarks"][name] = {
        "date": today.isoformat(),
        "rows": [{**asdict(row), "target": row.target, "holds": row.holds} for row in rows],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(found))


def markdown(found: dict[str, Any]) -> str:
    """The whole month's file as Markdown."""
    m = found["machine"]
    text = [
        f"# Benchmarks on {m['cores']} cores ({m['processor']}), {m['threads']} thread",
        "",
        ", ".join(f"{key} {m[key]}" for key in ("python", "torch", "transformers", "peft", "lightning"))
        + ". Made by `python benchmarks/run.py`.",
    ]
    for name in [n for n in NAMES if n in found["benchmarks"]]:
        kept = found["benchmarks"][name]
        rows = [Row(**{k: v for k, v in row.items() if k not in ("target", "holds")}) for row in kept["rows"]]
        text += ["", f"## {name} ({kept['date']})", "", table(rows)]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
