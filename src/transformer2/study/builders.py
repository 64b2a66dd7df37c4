"""The builder of each table and figure by the name that study files call it, and what every study ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from transformer2.errors import ConfigError, nearest, shown
from transformer2.study.choices import figure6, figure7
from transformer2.study.curves import figure4, figure9
from transformer2.study.output import Figure, Table
from transformer2.study.results import Study
from transformer2.study.spectra import drift, figure10, figure11
from transformer2.study.steps import steps
from transformer2.study.tables import table1, table4, table7
from transformer2.study.transfer import table5
from transformer2.study.tuning import tuning_table
from transformer2.study.unseen import table2, table3, table8, table10

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
