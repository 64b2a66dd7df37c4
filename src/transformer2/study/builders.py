"""The builder of each table and figure by the name that study files call it, and what every study ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from transformer2.adaptation import DISPATCHED
from transformer2.errors import ConfigError, nearest, shown
from transformer2.study.choices import figure6, figure7
from transformer2.study.curves import figure4, figure9, steps
from transformer2.study.output import Figure, Table
from transformer2.study.results import Run, Study
from transformer2.study.spectra import drift, figure10, figure11
from transformer2.study.tables import table1, table4, table7
from transformer2.study.unseen import table2, table3, table5, table8, table10

if TYPE_CHECKING:
    from transformer2.study.grid import Cell


class Builder(NamedTuple):
    """What makes a table or figure.

    Attributes:
        make: From the runs of a study.
        reads: Whether it has a row for, or draws, a cell of the grid that has the labels it needs.
        words: What it reads, in words.
    """

    make: Callable[[Study], Sequence[Table | Figure]]
    reads: Callable[[Cell], bool]
    words: str


def _kind(cell: Cell) -> str:
    """`fit`, `test`, `spectrum`, or the strategy of an `adapt`."""
    return str(cell.flags.get("strategy", "cem")) if cell.command == "adapt" else cell.command


def _is(*kinds: str) -> Callable[[Cell], bool]:
    return lambda cell: _kind(cell) in kinds


def _one_result(cell: Cell) -> bool:
    return _kind(cell) not in ("all", "spectrum")


def _drifted(cell: Cell) -> bool:
    return _kind(cell) == "spectrum" and bool(cell.expert or cell.flags.get("expert"))


ONE = "a fit, a test, or an adapt of one strategy"
UNSEEN = "an adapt, or a test, with the label task"

BUILDERS: Mapping[str, Builder] = {
    "table1": Builder(table1, _one_result, ONE),
    "table2": Builder(table2, lambda cell: _kind(cell) != "spectrum", UNSEEN),
    "table3": Builder(table3, lambda cell: _kind(cell) != "spectrum", UNSEEN),
    "table4": Builder(table4, _one_result, ONE),
    "table5": Builder(table5, _one_result, f"{ONE}, with the label task"),
    "table7": Builder(table7, _one_result, ONE),
    "table8": Builder(table8, _one_result, f"{ONE}, with the label shots"),
    "table9": Builder(table5, _one_result, f"{ONE}, with the label task"),
    "table10": Builder(table10, _one_result, f"{ONE}, with the label budget"),
    "figure4": Builder(figure4, _is("fit"), "a fit"),
    "figure6": Builder(figure6, _is("all", *DISPATCHED), f"an adapt by {', '.join(DISPATCHED)} or all"),
    "figure7": Builder(figure7, _is("all", "cem"), "an adapt by cem or all"),
    "figure9": Builder(figure9, lambda cell: _kind(cell) == "fit" and "lr" in cell.labels, "a fit with the label lr"),
    "figure10": Builder(figure10, _is("spectrum"), "a spectrum"),
    "figure11": Builder(figure11, _is("spectrum"), "a spectrum"),
    "drift": Builder(drift, _drifted, "a spectrum with an expert"),
    "steps": Builder(steps, _is("fit"), "a fit with the labels skill and target"),
}


def build(study: Study) -> list[Table | Figure]:
    """A study's tables and figures, and how its settings were tuned.

    Raises:
        ConfigError: No builder has that name.
    """
    outputs = [*_builder(study.build).make(study)]
    if study.note:
        outputs[0] = replace(outputs[0], notes=[study.note, *outputs[0].notes])
    return [*outputs, _tuning_table(study)] if study.tuning else outputs


def check_rows(name: str, cells: Sequence[Cell]) -> None:
    """Refuse, before anything is run, a study whose builder would have a row for none of its runs.

    Raises:
        ConfigError: No builder has that name, no run has the command and labels that it reads, or a label is no number.
    """
    builder = _builder(name)
    runs = tuple(Run(cell.name, 0, cell.labels, "", "missing") for cell in cells if builder.reads(cell))
    (table,) = builder.make(Study("", "", "", "", name, (), runs))
    if not (isinstance(table, Table) and table.rows):
        raise ConfigError(
            f"build: {name} has no row for any run of the study; give it {builder.words} (docs/studies.md)"
        )


def _builder(name: str) -> Builder:
    if name not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise ConfigError(f"build: {shown(name)} is no table or figure{nearest(name, BUILDERS)} Known: {known}")
    return BUILDERS[name]


def _tuning_table(study: Study) -> Table:
    """Each tuned run with the values tried on validation and the chosen one; whether all methods got as many."""
    rows = []
    for tuned in study.tuning:
        for position, value in enumerate(tuned.values):
            folder, validation = value.get("folder"), value.get("validation")
            score = "failed or not run" if validation is None else f"{100 * validation:.1f}"
            linked = f"[{score}]({folder})" if folder else score
            settings = ", ".join(f"{key} {setting}" for key, setting in value["set"].items())
            rows.append([tuned.name, settings, linked, str(tuned.seed), "chosen" if position == tuned.chosen else ""])
    counts = {t.name: (sum(v.get("validation") is not None for v in t.values), len(t.values)) for t in study.tuning}
    if len({number for of_run in counts.values() for number in of_run}) == 1:
        notes = [f"every tuned run got the same number of tuning runs: {len(study.tuning[0].values)}"]
    else:
        listed = ", ".join(f"{name} {done}{'' if done == of else f' of {of}'}" for name, (done, of) in counts.items())
        notes = [f"**not the same number of tuning runs for all**: {listed}"]
    if untuned := [name for name in study.groups if name not in counts]:
        notes.append(f"not tuned: {', '.join(untuned)}")
    if undecided := [tuned.name for tuned in study.tuning if tuned.chosen is None]:
        notes.append(f"not chosen yet, a value is missing: {', '.join(undecided)}")
    columns = ["run", "tried", "validation accuracy, %", "seed", ""]
    return Table(f"{study.name}_tuning", "Tuning, on validation rows", columns, rows, notes)
