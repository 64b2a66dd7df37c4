"""Tables of z moved to another model: 5 (on unseen tasks) and 9 (on the tasks that the experts were trained for).

Runs are `<how>-<task>` on the other model, with the label `task`:

    ordered      `test` of an expert of the first model
    shuffled     the same with `--shuffle_expert`
    cross_model  `adapt` (cem) over experts of the first model

and whatever else the study has with that label: a row each, below the other model's own score.
"""

from __future__ import annotations

from transformer2.study import published
from transformer2.study.cells import (
    NOTES,
    SCORE_COLUMNS,
    base_cells,
    on_runs,
    report_test,
    runs_of,
    score_cells,
    scored,
    stem,
)
from transformer2.study.output import Figure, Table
from transformer2.study.results import Study
from transformer2.study.tables import OTHER_MODELS
from transformer2.study.unseen import base_on, task_of

HOW = {
    "ordered": "z of the first model, in order",
    "shuffled": "the same z, shuffled within each matrix",
    "cross_model": "few-shot (cem) over z of the first model",
}


def table5(study: Study) -> list[Table | Figure]:
    """z of one model on another: in order, shuffled, and mixed by few-shot search."""
    rows, shown = [], [name for name in scored(study) if task_of(study, name)]
    for task in dict.fromkeys(task_of(study, name) for name in shown):
        theirs = published.UNSEEN.get(task) if study.build == "table5" else published.SKILLS.get(task)
        what, (base, runs) = f"{task} ({theirs})" if theirs else task, base_on(study, task)
        rows.append([what, "the other model itself", *base_cells(base, runs), _paper("base", theirs)])
        for name in (name for name in shown if task_of(study, name) == task):
            reports = study.reports(name)
            scores, bases = ({seed: report[side] for seed, report in reports.items()} for side in ("result", "base"))
            tests = {seed: report_test(report) for seed, report in reports.items()}
            how = stem(study, name)
            cells = score_cells(runs_of(study, name), scores, bases, tests)
            rows.append([what, HOW.get(how, how), *cells, _paper(how, theirs)])
    notes = [*NOTES, "entry i of z scales the i-th largest singular value of the other model's matrix", OTHER_MODELS]
    columns = ["task", "z", *SCORE_COLUMNS, "paper: Llama's z on Mistral"]
    return [Table(study.name, "z of one model on another", columns, rows, [*notes, *on_runs(study, shown)])]


def _paper(how: str, task: str | None) -> str:
    return published.shown(published.TABLE5.get(how) if task == "ARC-Challenge" else None)
