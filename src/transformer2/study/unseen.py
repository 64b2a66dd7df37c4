"""Tables of unseen tasks: 2 (strategies), 3 (seconds of both passes), 8 (shots: CEM and IA3), 10 (budgets of CEM).

The label `task` or `unseen` says which unseen task (or, in runs named `..._unseen`, the label `skill`: that of the
skill's unseen counterpart). Tables 2 and 3 read runs of three kinds:

    adapt-<task>       `adapt --strategy all`: a row for the base, for each strategy, and for each control
    <strategy>-<task>  `adapt` with one strategy, under the name of the run; soft: `--strategy scores --adapt.soft true`
    lora-<task>        `test` of another expert on the unseen task; `lora_on_unseen-<task>` is the same

Table 8 reads `cem-<shots>` (adapt) and `ia3_100-<shots>`, `ia3_1000-<shots>` (fit on the same rows), label `shots`;
table 10 `cem-<budget>`, label `budget`, with the paper's budgets called 10_shots, 3_shots and light. Both may have a
label `task` as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from transformer2.study import published
from transformer2.study.cells import (
    NOTES,
    SCORE_COLUMNS,
    Scores,
    absent,
    base_cells,
    base_of,
    display,
    expert_name,
    on_runs,
    report_test,
    runs_of,
    score_cells,
    scored,
    seeds_cell,
    stem,
    training,
)
from transformer2.study.output import Figure, Table
from transformer2.study.results import Run, Study
from transformer2.study.tables import OTHER_MODELS

ON_UNSEEN = "_unseen"
ALL = "adapt"  # the name of runs of every strategy
STRATEGIES = ("prompt", "cls", "scores", "cem")
CONSTANT = "best constant z"


def table2(study: Study) -> list[Table | Figure]:
    """Strategies, experts of other methods and controls on unseen tasks."""
    rows = []
    for task in tasks(study):
        what, theirs = _what(task), published.UNSEEN.get(task, "")
        base, runs = base_on(study, task)
        rows.append([what, "base", *base_cells(base, runs), "0", _table2("base", theirs)])
        for name, found in rows_of(study, task).items():
            scores = {seed: entry["score"] for seed, entry in found.entries.items()}
            tests = {seed: entry["test"] for seed, entry in found.entries.items()}
            spent = [entry["evaluations"] for entry in found.entries.values() if entry["evaluations"]]
            bases = {seed: entry["base"] for seed, entry in found.entries.items()}  # on the row's own questions
            cells = score_cells(found.runs, scores, bases, tests)
            tried = f"{fmean(spent):.0f}" if spent else "–" if not found.entries else "0"
            rows.append([what, display(name), *cells, tried, _table2(name, theirs)])
    columns = ["task", "strategy", *SCORE_COLUMNS, "mixtures tried", f"paper: {published.MODEL}"]
    shown = [name for name in study.names if task_of(study, name)]
    notes = [*NOTES, "expert, uniform mixture, constant z: controls", OTHER_MODELS, *on_runs(study, shown)]
    return [Table(study.name, "Strategies on unseen tasks", columns, rows, notes)]


def table3(study: Study) -> list[Table | Figure]:
    """Seconds of the first and of the second pass."""
    rows, shown = [], []
    for task in tasks(study):
        for name, found in rows_of(study, task, controls=False).items():
            spent = [entry["seconds"] for entry in found.entries.values() if "first_pass" in entry["seconds"]]
            if found.entries and not spent:
                continue  # answered in one pass, by a `test`
            shown += [run.name for run in found.runs]
            theirs = published.TABLE3.get(published.UNSEEN.get(task, "")) if name == "prompt" else None
            cells = [absent(found.runs), "–", "–"]
            if spent:
                cells = _passes(fmean(s["first_pass"] for s in spent), fmean(s["second_pass"] for s in spent))
            rows.append(
                [
                    _what(task),
                    display(name),
                    *cells,
                    seeds_cell(found.runs),
                    *(_passes(*theirs) if theirs else ["–"] * 3),
                ]
            )
    ours, paper = ["first pass, s", "second pass, s", "first / second"], f"paper: {published.MODEL}, "
    columns = ["task", "strategy", *ours, "seeds", *(paper + head for head in ours)]
    notes = ["mean over seeds, wall clock, of all questions of the task", OTHER_MODELS, *on_runs(study, shown)]
    return [Table(study.name, "Seconds of both passes", columns, rows, notes)]


def table8(study: Study) -> list[Table | Figure]:
    """Shots: the search for a mixture against a few steps of IA3 on the same rows."""
    rows = []
    shown = [name for name in scored(study) if "shots" in study.labels(name)]
    for name in sorted(shown, key=lambda n: (task_of(study, n), _number(study.labels(n)["shots"]))):
        shots, kind = study.labels(name)["shots"], kind_of(study, name)
        theirs = published.TABLE8.get(kind, {}).get(shots) if _is_arc(task_of(study, name)) else None
        rows.append(
            [
                _what(task_of(study, name)),
                shots,
                display(kind),
                *_own(study, name),
                *training(study.reports(name).values()),
                published.shown(theirs),
            ]
        )
    columns = [
        "task",
        "shots",
        "method",
        *SCORE_COLUMNS,
        "trainable",
        "training, s",
        f"paper: {published.MODEL}, ARC-Challenge",
    ]
    return [Table(study.name, "Shots: CEM and IA3", columns, rows, [*NOTES, OTHER_MODELS, *on_runs(study, shown)])]


def table10(study: Study) -> list[Table | Figure]:
    """Budgets of the search, with the mixtures that were tried beside the accuracy."""
    rows = []
    shown = [name for name in scored(study) if "budget" in study.labels(name)]
    for name in shown:
        budget, reports = study.labels(name)["budget"], study.reports(name)
        spent = [report["evaluations"] for report in reports.values() if report.get("evaluations") is not None]
        shots = sorted({len(report.get("details", {}).get("few_shot", ())) for report in reports.values()})
        seconds = [report["seconds"]["first_pass"] for report in reports.values() if "first_pass" in report["seconds"]]
        extra = [
            ", ".join(map(str, shots)) or "–",
            f"{fmean(spent):.0f}" if spent else "–",
            f"{fmean(seconds):.0f}" if seconds else "–",
        ]
        rows.append(
            [
                _what(task_of(study, name)),
                budget,
                *extra,
                *_own(study, name),
                published.shown(published.TABLE10.get(budget) if _is_arc(task_of(study, name)) else None),
            ]
        )
    columns = [
        "task",
        "budget",
        "shots",
        "mixtures tried",
        "search, s",
        *SCORE_COLUMNS,
        f"paper: {published.MODEL}, ARC-Challenge",
    ]
    return [Table(study.name, "Budgets of CEM", columns, rows, [*NOTES, OTHER_MODELS, *on_runs(study, shown)])]


@dataclass
class Row:
    """A row of table 2: where it is from, and seed -> `score`, `test`, `seconds`, `evaluations`."""

    runs: list[Run]
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)


def task_of(study: Study, name: str) -> str:
    """The unseen task of a run; empty for another run, and for one that scores no task."""
    if any("spectrum" in report for report in study.reports(name).values()):
        return ""
    labels = study.labels(name)
    fallback = labels.get("skill", "") if stem(study, name).endswith(ON_UNSEEN) else ""
    return labels.get("task", labels.get("unseen", fallback))


def tasks(study: Study) -> list[str]:
    """Unseen tasks, in order."""
    return [task for task in dict.fromkeys(task_of(study, name) for name in study.names) if task]


def kind_of(study: Study, name: str) -> str:
    """cem, ia3_100, ...: the name of a run without its matrix, or with the number of steps out of it."""
    labels = study.labels(name)
    return stem(study, name) + (f"_{labels['steps']}" if "steps" in labels else "")


def rows_of(study: Study, task: str, controls: bool = True) -> dict[str, Row]:
    """Strategies, other experts and controls on a task; of a run that is not done, the rows that it would have."""
    rows: dict[str, Row] = {}
    compared: dict[str, Row] = {}
    for name in study.names:
        if task_of(study, name) != task:
            continue
        runs, own = runs_of(study, name), stem(study, name).removesuffix(ON_UNSEEN).removesuffix("_on")
        for row in STRATEGIES if own == ALL else (own,):
            rows.setdefault(row, Row([])).runs += runs
        for seed, whole in study.reports(name).items():
            for row, report in whole.get("strategies", {own: whole}).items():
                rows.setdefault(row, Row([*runs])).entries[seed] = _entry(report["result"], report["base"], report)
                for control, score in report["controls"].items():
                    kind, _, expert = control.partition(" ")
                    shown = f"expert {expert_name(study, expert)}" if kind == "expert" else control
                    shown = CONSTANT if control.startswith("constant z") else shown
                    compared.setdefault(shown, Row(runs)).entries.setdefault(seed, _entry(score, report["base"]))
    return {**rows, **compared} if controls else rows


def base_on(study: Study, task: str) -> tuple[Scores, list[Run]]:
    """The base on a task, by seed, and the runs that say so."""
    return base_of(study, [name for name in study.names if task_of(study, name) == task])


def _entry(
    score: Mapping[str, Any], base: Mapping[str, Any], report: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a row says of a seed; a control has a score, and the base of the run that it is of, alone."""
    report = report or {}
    test, evaluations = report_test(report), report.get("evaluations")
    return {
        "score": score,
        "base": base,
        "test": test,
        "seconds": report.get("seconds", {}),
        "evaluations": evaluations,
    }


def _own(study: Study, name: str) -> list[str]:
    """Score cells of a run with one result."""
    reports = study.reports(name)
    scores, bases = ({seed: report[side] for seed, report in reports.items()} for side in ("result", "base"))
    return score_cells(runs_of(study, name), scores, bases, {seed: report_test(r) for seed, r in reports.items()})


def _what(task: str) -> str:
    theirs = published.UNSEEN.get(task)
    return f"{task} ({theirs})" if theirs else task


def _table2(row: str, task: str) -> str:
    return published.shown(published.TABLE2.get(row, {}).get(task))


def _is_arc(task: str) -> bool:
    """Whether a task is ARC-Challenge, the one of the paper's tables 8 and 10; it is where none is named."""
    return not task or published.UNSEEN.get(task) == "ARC-Challenge"


def _passes(first: float, second: float) -> list[str]:
    return [f"{first:.2f}", f"{second:.2f}", f"{100 * first / second:.0f} %" if second else "–"]


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else float("inf")
