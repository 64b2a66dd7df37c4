"""A benchmark's rows, as a table and as the month's file. Imports no torch, so that a process that only waits is light.

The file of a machine and month is `results/<kind>_<yyyymm>.json`, and the same as Markdown next to it. It keeps the
figures of benchmarks that a run leaves out.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "NAMES", "Row", "keep", "table"]

FOLDER = Path(__file__).parent / "results"
# Benchmarks of run.py, in the order of the file; those of other commands follow.
NAMES = (
    "layer", "train_step", "decomposition", "kl", "zrows", "share", "startup", "rl_step", "llm_step", "to_accuracy",
    "verify_math", "sandbox", "quantised", "serve", "vision",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        measured: The figure; None when it was not measured, and `note` says why.
        unit: `x` for ratios, `s`, `%`, ...
        at_most: The target is at most this.
        at_least: The target is at least this.
        note: Shapes, absolute figures.
    """

    what: str
    measured: float | None
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def target(self) -> str:
        """The target in words, empty where there is none."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}".strip()
        return "" if self.at_least is None else f">= {self.at_least:g} {self.unit}".strip()

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without target or figure."""
        if self.measured is None or not self.target:
            return None
        return self.measured <= self.at_most if self.at_most is not None else self.measured >= (self.at_least or 0)

    @property
    def figure(self) -> str:
        """The figure with its unit, three digits."""
        if self.measured is None:
            return "-"
        digits = f"{self.measured:.3g}" if abs(self.measured) < 1000 else f"{self.measured:.0f}"
        return f"{digits} {self.unit}".strip()


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| what | measured | target | holds | |", "|---|---|---|---|---|"]
    for row in rows:
        holds = {True: "yes", False: "NO", None: "" if row.measured is not None else "not measured"}[row.holds]
        lines.append(f"| {row.what} | {row.figure} | {row.target} | {holds} | {row.note} |")
    return "\n".join(lines)


def keep(name: str, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    """Put one benchmark's rows into this month's file of this machine, JSON and Markdown.

    Args:
        name: The benchmark.
        rows: Its rows.
        machine: What `_common.machine` says.
    """
    today = datetime.date.today()
    path = FOLDER / f"{machine['kind']}_{today:%Y%m}.json"
    path.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"benchmarks": {}}
    found["machine"] = dict(machine)
    found["benchmarks"][name] = {
        "date": today.isoformat(),
        "rows": [{**asdict(row), "target": row.target, "holds": row.holds} for row in rows],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(_markdown(found))


def _markdown(found: Mapping[str, Any]) -> str:
    """The whole month's file as Markdown."""
    m = found["machine"]
    processor = f"{m['cores']} cores ({m['processor']}), {m['threads']} thread{'s' if m['threads'] > 1 else ''}"
    if "gpu" in m:
        processor = f"{m['gpu']} ({m['gpu_memory']}, driver {m['driver']}, CUDA {m['cuda']}), {processor}"
    versions = ", ".join(f"{key} {m[key]}" for key in ("python", "torch", "transformers", "peft", "lightning"))
    text = [f"# Benchmarks on {processor}", "", f"{versions}. Made by `python benchmarks/run.py`{_also(found)}."]
    benchmarks = found["benchmarks"]
    for name in [*(n for n in NAMES if n in benchmarks), *(n for n in benchmarks if n not in NAMES)]:
        kept = benchmarks[name]
        rows = [Row(**{k: v for k, v in row.items() if k not in ("target", "holds")}) for row in kept["rows"]]
        text += ["", f"## {name} ({kept['date']})", "", table(rows)]
    return "\n".join(text) + "\n"


def _also(found: Mapping[str, Any]) -> str:
    """The other command, where the file has rows of it."""
    return " and `python benchmarks/gpu_check.py`" if any("gpu_check" in name for name in found["benchmarks"]) else ""
