"""How settings were chosen: every value that was tried on validation, and whether all methods got as many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer2.study.output import Table
from transformer2.study.results import Study


def tuning_table(study: Study) -> Table | None:
    """Each tuned run with the values tried, their validation accuracy, and the chosen one; None where nothing was."""
    if not study.tuning:
        return None
    rows = []
    for tuned in study.tuning:
        for position, value in enumerate(tuned.values):
            folder, validation = value.get("folder"), value.get("validation")
            score = "failed or not run" if validation is None else f"{100 * validation:.1f}"
            linked = f"[{score}]({folder})" if folder else score
            chosen = "chosen" if position == tuned.chosen else ""
            rows.append([tuned.name, _settings(value["set"]), linked, str(tuned.seed), chosen])
    counts = {t.name: (sum(v.get("validation") is not None for v in t.values), len(t.values)) for t in study.tuning}
    if len(set(counts.values())) == 1 and len({*next(iter(counts.values()))}) == 1:
        fair = f"every tuned run got the same number of tuning runs: {len(study.tuning[0].values)}"
    else:
        listed = ", ".join(f"{name} {done}{'' if done == of else f' of {of}'}" for name, (done, of) in counts.items())
        fair = f"**not the same number of tuning runs for all**: {listed}"
    untuned = [name for name in study.names if name not in counts]
    notes = [fair, *([f"not tuned: {', '.join(untuned)}"] if untuned else [])]
    undecided = [tuned.name for tuned in study.tuning if tuned.chosen is None]
    notes += [f"not chosen yet, a value is missing: {', '.join(undecided)}"] if undecided else []
    columns = ["run", "tried", "validation accuracy, %", "seed", ""]
    return Table(f"{study.name}_tuning", "Tuning, on validation rows", columns, rows, notes)


def _settings(flags: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in flags.items())
