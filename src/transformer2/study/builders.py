"""The builder of each table and figure by the name that study files call it, and what every study ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformer2.errors import ConfigError, nearest, shown
from transformer2.study.choices import DISPATCHED, figure6, figure7
from transformer2.study.curves import figure4, figure9
from transformer2.study.output import Figure, Table
from transformer2.study.results import Run, Study
from transformer2.study.spectra import drift, figure10, figure11
from transformer2.study.steps import steps
from transformer2.study.tables import table1, table4, table7
from transformer2.study.transfer import table5
from transformer2.study.tuning import tuning_table
from transformer2.study.unseen import table2, table3, table8, table10

if TYPE_CHECKING:
    from transformer2.study.grid import Cell

Builder = Callable[[Study], Sequence[Table | Figure]]

BUILDERS: Mapping[str, Builder] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table7": table7,
    "table8": table8,
    "table9": table5,
    "table10": table10,
    "figure4": figure4,
    "figure6": figure6,
    "figure7": figure7,
    "figure9": figure9,
    "figure10": figure10,
    "figure11": figure11,
    "drift": drift,
    "steps": steps,
}


def _one(cell: Cell) -> bool:
    return cell.command in ("fit", "test") or (cell.command == "adapt" and _strategy(cell) != "all")


def _any(cell: Cell) -> bool:
    return cell.command != "spectrum"


def _strategy(cell: Cell) -> str:
    return str(cell.flags.get("strategy", "cem")) if cell.command == "adapt" else ""


ONE = "a fit, a test, or an adapt of one strategy"
# What a builder has a row for, or draws: a cell of the grid, and in words.
ROWS: Mapping[str, tuple[Callable[[Cell], bool], str]] = {
    **dict.fromkeys(("table1", "table4", "table7"), (_one, ONE)),
    **dict.fromkeys(("table2", "table3"), (_any, "an adapt, or a test, with the label task")),
    **dict.fromkeys(("table5", "table9"), (_one, f"{ONE}, with the label task")),
    "table8": (_one, f"{ONE}, with the label shots"),
    "table10": (_one, f"{ONE}, with the label budget"),
    "figure4": (lambda cell: cell.command == "fit", "a fit"),
    "figure6": (lambda cell: _strategy(cell) in ("all", *DISPATCHED), "an adapt by prompt, cls, scores or all"),
    "figure7": (lambda cell: _strategy(cell) in ("all", "cem"), "an adapt by cem or all"),
    "figure9": (lambda cell: cell.command == "fit" and "lr" in cell.labels, "a fit with the label lr"),
    **dict.fromkeys(("figure10", "figure11"), (lambda cell: cell.command == "spectrum", "a spectrum")),
    "drift": (
        lambda cell: cell.command == "spectrum" and bool(cell.expert or cell.flags.get("expert")),
        "a spectrum with an expert",
    ),
    "steps": (lambda cell: cell.command == "fit", "a fit with the labels skill and target"),
}


def build(study: Study) -> list[Table | Figure]:
    """A study's tables and figures, and how its settings were tuned.

    Raises:
        ConfigError: No builder has that name.
    """
    check_builder(study.build)
    outputs, tuning = [*BUILDERS[study.build](study)], tuning_table(study)
    if study.note and isinstance(outputs[0], Table):
        outputs[0] = replace(outputs[0], notes=[study.note, *outputs[0].notes])
    return [*outputs, *([tuning] if tuning else [])]


def check_builder(name: str) -> None:
    """Refuse a `build:` that is the name of no builder."""
    if name not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise ConfigError(f"build: {shown(name)} is no table or figure{nearest(name, BUILDERS)} Known: {known}")


def check_rows(name: str, cells: Sequence[Cell]) -> None:
    """Refuse, before anything is run, a study whose builder would have a row for none of its runs.

    Raises:
        ConfigError: No builder has that name, no run has the command and labels that it reads, or a label is no number.
    """
    check_builder(name)
    is_read, words = ROWS[name]
    runs = tuple(Run(cell.name, 0, cell.labels, "", "missing") for cell in cells if is_read(cell))
    (table,) = BUILDERS[name](Study("", "", "", "", name, (), runs))
    if not (isinstance(table, Table) and table.rows):
        raise ConfigError(f"build: {name} has no row for any run of the study; give it {words} (docs/studies.md)")
