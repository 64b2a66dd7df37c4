"""Tables of unseen tasks: 2 (strategies), 3 (seconds of both passes), 5 (z of another model), 8 (shots), 10 (budgets).

The label `task` or `unseen` says which unseen task (or, in runs named `..._unseen`, the label `skill`: that of the
skill's unseen counterpart). Tables 2 and 3 read runs of three kinds:

    adapt-<task>       `adapt --strategy all`: a row for the base, for each strategy, and for each control
    <strategy>-<task>  `adapt` with one strategy, under the name of the run; soft: `--strategy scores --adapt.soft true`
    lora-<task>        `test` of another expert on the unseen task; `lora_on_unseen-<task>` is the same

Tables 5 and 9 (of the tasks that the experts were trained for) read runs on another model, `<how>-<task>`:

    ordered      `test` of an expert of the first model
    shuffled     the same with `--shuffle_expert`
    cross_model  `adapt` (cem) over experts of the first model

and whatever else the study has with the label `task`: a row each, below the other model's own score.

Table 8 reads `cem-<shots>` (adapt) and `ia3_100-<shots>`, `ia3_1000-<shots>` (fit on the same rows), label `shots`;
table 10 `cem-<budget>`, label `budget`, with the paper's budgets called 10_shots, 3_shots and light. Both may have a
label `task` as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import fmean

from transformer2.adaptation import DISPATCHED, STRATEGIES
from transformer2.study import published
from transformer2.study.cells import (
    FIT_COLUMNS,
    NOTES,
    SCORE_COLUMNS,
    Report,
    absent,
    alike,
    apart,
    base_rows,
    display,
    expert_names,
    fit_cells,
    on_runs,
    score_cells,
    seeds_cell,
    suffixes,
)
from transformer2.study.output import Figure, Table
from transformer2.study.results import Group, Run, Study
from transformer2.study.tables import OTHER_MODELS

ARC = f"paper: {published.MODEL}, ARC-Challenge"
ON_UNSEEN = "_unseen"
ALL = "adapt"  # the name of runs of every strategy
CONSTANT = "best constant z"
HOW = {
    "ordered": "z of the first model, in order",
    "shuffled": "the same z, shuffled within each matrix",
    "cross_model": "few-shot (cem) over z of the first model",
}


def table2(study: Study) -> list[Table | Figure]:
    """Strategies, experts of other methods and controls on unseen tasks."""
    rows = []
    for task in tasks(study):
        what, theirs = _what(task), published.UNSEEN.get(task, "")
        for name, cells in base_rows(groups_on(study, task)):
            rows.append([what, name, *cells, "0", _table2("base", theirs)])
        for row in rows_of(study, task).values():
            spent = [report["evaluations"] for report in row.reports.values() if report.get("evaluations")]
            tried = f"{fmean(spent):.0f}" if spent else "0" if row.reports else "–"
            cells = score_cells(row.runs, row.reports)
            rows.append([what, row.title, *cells, tried, _table2(row.name, theirs)])
    columns = ["task", "strategy", *SCORE_COLUMNS, "mixtures tried", f"paper: {published.MODEL}"]
    shown = [group for group in study.groups.values() if task_of(group)]
    notes = [*NOTES, "expert, uniform mixture, constant z: controls", OTHER_MODELS, *on_runs(study, shown)]
    return [Table(study.name, "Strategies on unseen tasks", columns, rows, notes)]


def table3(study: Study) -> list[Table | Figure]:
    """Seconds of the first and of the second pass."""
    rows, shown = [], []
    for task in tasks(study):
        for row in rows_of(study, task, controls=False).values():
            spent = [report["seconds"] for report in row.reports.values() if "first_pass" in report["seconds"]]
            if row.reports and not spent:
                continue  # answered in one pass, by a `test`
            shown += [study.groups[run.name] for run in row.runs]
            theirs = published.TABLE3.get(published.UNSEEN.get(task, "")) if row.name == "prompt" else None
            ours = [absent(row.runs), "–", "–"]
            if spent:
                ours = _passes(fmean(s["first_pass"] for s in spent), fmean(s["second_pass"] for s in spent))
            paper = _passes(*theirs) if theirs else ["–"] * 3
            rows.append([_what(task), row.title, *ours, seeds_cell(row.runs), *paper])
    heads = ["first pass, s", "second pass, s", "first / second"]
    columns = ["task", "strategy", *heads, "seeds", *(f"paper: {published.MODEL}, {head}" for head in heads)]
    notes = ["mean over seeds, wall clock, of all questions of the task", OTHER_MODELS, *on_runs(study, shown)]
    return [Table(study.name, "Seconds of both passes", columns, rows, notes)]


def table5(study: Study) -> list[Table | Figure]:
    """z of one model on another: in order, shuffled, and mixed by few-shot search."""

    def paper(how: str) -> str:
        return published.shown(published.TABLE5.get(how) if theirs == "ARC-Challenge" else None)

    rows, shown = [], [group for group in study.scored if task_of(group)]
    more = apart(shown, lambda group: (task_of(group), group.stem))
    for task in dict.fromkeys(map(task_of, shown)):
        theirs = (published.UNSEEN if study.build == "table5" else published.SKILLS).get(task)
        what = published.named(task, theirs)
        for name, cells in base_rows(groups_on(study, task)):
            rows.append([what, name.replace("base", "the other model itself", 1), *cells, paper("base")])
        for group in (group for group in shown if task_of(group) == task):
            how = HOW.get(group.stem, group.stem) + more[group.name]
            rows.append([what, how, *score_cells(group.runs, group.reports), paper(group.stem)])
    notes = [*NOTES, "entry i of z scales the i-th largest singular value of the other model's matrix", OTHER_MODELS]
    columns = ["task", "z", *SCORE_COLUMNS, "paper: Llama's z on Mistral"]
    return [Table(study.name, "z of one model on another", columns, rows, [*notes, *on_runs(study, shown)])]


def table8(study: Study) -> list[Table | Figure]:
    """Shots: the search for a mixture against a few steps of IA3 on the same rows."""
    rows = []
    shown = [group for group in study.scored if "shots" in group.labels]
    more = apart(shown, lambda group: (task_of(group), group.labels["shots"], _kind(group)))
    for group in sorted(shown, key=lambda group: (task_of(group), group.labels["shots"].rjust(9))):  # as numbers
        shots, task = group.labels["shots"], task_of(group)
        kind = _kind(group)
        theirs = published.TABLE8.get(kind, {}).get(shots) if _is_arc(task) else None
        rows.append([_what(task), shots, display(kind) + more[group.name], *fit_cells(group), published.shown(theirs)])
    columns = ["task", "shots", "method", *FIT_COLUMNS, ARC]
    return [Table(study.name, "Shots: CEM and IA3", columns, rows, [*NOTES, OTHER_MODELS, *on_runs(study, shown)])]


def table10(study: Study) -> list[Table | Figure]:
    """Budgets of the search, with the mixtures that were tried beside the accuracy."""
    rows = []
    shown = [group for group in study.scored if "budget" in group.labels]
    more = apart(shown, lambda group: (task_of(group), group.labels["budget"]))
    for group in shown:
        budget, task, reports = group.labels["budget"], task_of(group), group.reports.values()
        shots = sorted({len(report.get("details", {}).get("few_shot", ())) for report in reports})
        spent = [report["evaluations"] for report in reports if report.get("evaluations") is not None]
        seconds = [report["seconds"]["first_pass"] for report in reports if "first_pass" in report["seconds"]]
        means = [f"{fmean(values):.0f}" if values else "–" for values in (spent, seconds)]
        search = [", ".join(map(str, shots)) or "–", *means]
        theirs = published.shown(published.TABLE10.get(budget) if _is_arc(task) else None)
        rows.append([_what(task), budget + more[group.name], *search, *score_cells(group.runs, group.reports), theirs])
    columns = ["task", "budget", "shots", "mixtures tried", "search, s", *SCORE_COLUMNS, ARC]
    return [Table(study.name, "Budgets of CEM", columns, rows, [*NOTES, OTHER_MODELS, *on_runs(study, shown)])]


@dataclass
class Row:
    """A row of table 2.

    Attributes:
        name: A strategy, an expert or a control.
        runs: Where it is from.
        reports: Seed -> a strategy's report; of a control, its score as `result`, and the `base` of the same run.
        more: What tells it from another row of that name.
    """

    name: str
    runs: list[Run]
    reports: dict[int, Report] = field(default_factory=dict)
    more: str = ""

    @property
    def title(self) -> str:
        """What tables call it."""
        return display(self.name) + self.more


def task_of(group: Group) -> str:
    """The unseen task of a run; empty for another run, and for one that scores no task."""
    if any("spectrum" in report for report in group.reports.values()):
        return ""
    fallback = group.labels.get("skill", "") if group.stem.endswith(ON_UNSEEN) else ""
    return group.labels.get("task", group.labels.get("unseen", fallback))


def tasks(study: Study) -> list[str]:
    """Unseen tasks, in order."""
    return [task for task in dict.fromkeys(map(task_of, study.groups.values())) if task]


def groups_on(study: Study, task: str) -> list[Group]:
    """The runs on an unseen task."""
    return [group for group in study.groups.values() if task_of(group) == task]


def rows_of(study: Study, task: str, controls: bool = True) -> dict[str, Row]:
    """Strategies, other experts and controls on a task; of a run that is not done, the rows that it would have.

    Runs of one strategy have a row each; a control that says the same in several runs has one.
    """
    strategies: dict[str, dict[str, Row]] = {}  # by the runs that they are from
    compared: dict[str, dict[str, Row]] = {}
    for group in groups_on(study, task):
        own = group.stem.removesuffix(ON_UNSEEN).removesuffix("_on")
        for name in dict.fromkeys((*DISPATCHED, *STRATEGIES)) if own == ALL else (own,):
            strategies.setdefault(name, {})[group.name] = Row(name, [*group.runs])
        for seed, whole in group.reports.items():
            for name, report in whole.get("strategies", {own: whole}).items():
                row = strategies.setdefault(name, {}).setdefault(group.name, Row(name, [*group.runs]))
                row.reports[seed] = report
                alone = [control.removeprefix("expert ") for control in report["controls"]]
                names = expert_names(study, alone)
                for control, score in report["controls"].items():
                    kind, _, expert = control.partition(" ")
                    shown = f"expert {names[expert]}" if kind == "expert" else control
                    shown = CONSTANT if control.startswith("constant z") else shown
                    of_control = {"result": score, "base": report["base"]}
                    row = compared.setdefault(shown, {}).setdefault(group.name, Row(shown, [*group.runs]))
                    row.reports.setdefault(seed, of_control)
    rows = []
    for of_runs in strategies.values():
        more = suffixes([study.groups[name] for name in of_runs])
        rows += [replace(row, more=own) for row, own in zip(of_runs.values(), more, strict=True)]
    for shown, of_runs in compared.items() if controls else ():
        readings = [(study.groups[name], row.reports) for name, row in of_runs.items()]
        rows += [Row(shown, [*of[0].runs], reports, own) for own, of, reports in alike(readings)]
    return {row.name + row.more: row for row in rows}


def _kind(group: Group) -> str:
    """A method of table 8, with its steps: ia3_100."""
    return "_".join([group.stem, *([group.labels["steps"]] if "steps" in group.labels else [])])


def _what(task: str) -> str:
    return published.named(task, published.UNSEEN.get(task))


def _table2(row: str, task: str) -> str:
    return published.shown(published.TABLE2.get(row, {}).get(task))


def _is_arc(task: str) -> bool:
    """Whether a task is ARC-Challenge, the one of the paper's tables 8 and 10; it is where none is named."""
    return not task or published.UNSEEN.get(task) == "ARC-Challenge"


def _passes(first: float, second: float) -> list[str]:
    return [f"{first:.2f}", f"{second:.2f}", f"{100 * first / second:.0f} %" if second else "–"]
