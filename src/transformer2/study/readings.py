"""Numbers that claims are about, out of the reports of a study: points by seed, for each skill, task or setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from transformer2.study.cells import Report, points, scored, stem
from transformer2.study.results import Study
from transformer2.study.tables import method, modules, objective, skill_of
from transformer2.study.unseen import rows_of, tasks

Points = Mapping[int, float]  # seed -> points
Reading = Callable[[Mapping[int, Report]], Points]


def common(of: Iterable[Points]) -> list[int]:
    """Seeds that all have."""
    sets = [set(points_of) for points_of in of]
    return sorted(set.intersection(*sets)) if sets else []


def result(reports: Mapping[int, Report]) -> Points:
    """Accuracy of the trained or adapted model."""
    return points({seed: report["result"] for seed, report in reports.items()})


def gain(reports: Mapping[int, Report]) -> Points:
    """The same above its base."""
    base = points({seed: report["base"] for seed, report in reports.items()})
    return {seed: value - base[seed] for seed, value in result(reports).items() if seed in base}


def fall(reports: Mapping[int, Report]) -> Points:
    """Points from the best validation accuracy to the last."""
    return {seed: max(curve) - curve[-1] for seed, curve in curves(reports).items()}


def curves(reports: Mapping[int, Report]) -> dict[int, list[float]]:
    """Validation accuracies of the runs that were validated, in points; the first is the base's."""
    curves = {seed: of.get("details", {}).get("training", {}).get("curve", ()) for seed, of in reports.items()}
    return {seed: [100 * point["accuracy"] for point in curve] for seed, curve in curves.items() if curve}


def by_skill(study: Study, name: str, reading: Reading) -> dict[str, Points]:
    """A method on each of its skills."""
    names = [n for n in scored(study) if "skill" in study.labels(n) and stem(study, n) == name]
    return {skill_of(study, n): reading(study.reports(n)) for n in names}


def by_label(study: Study, name: str) -> dict[str, Points]:
    """Results of runs of that name, by the values of their matrix."""
    names = [n for n in scored(study) if stem(study, n) == name]
    return {", ".join(study.labels(n).values()): result(study.reports(n)) for n in names}


def by_modules(study: Study, name: str, goal: str, reading: Reading = result) -> dict[str, Points]:
    """A method under an objective, for each set of modules that the study names; {} where no run is done."""
    names = [run for run in scored(study) if (method(study, run), objective(study, run)) == (name, goal)]
    several = len({skill_of(study, run) for run in names}) > 1
    keys = {run: modules(study, run) + (f", {skill_of(study, run)}" if several else "") for run in names}
    return {keys[run]: reading(study.reports(run)) for run in names}


def strategy(study: Study, name: str) -> dict[str, Points]:
    """A strategy on each unseen task."""
    rows = {task: rows_of(study, task, controls=False).get(name) for task in tasks(study)}
    return {task: row_points(row.entries) if row else {} for task, row in rows.items()}


def row_points(entries: Mapping[int, Mapping[str, Report]]) -> Points:
    """Accuracy of a row of table 2."""
    return points({seed: entry["score"] for seed, entry in entries.items()})


def trainable(study: Study, name: str) -> float:
    """Trained numbers of a method, the largest over its runs; 0 where none is done."""
    names = [n for n in study.names if stem(study, n) == name]
    trained = [r.get("details", {}).get("training") for n in names for r in study.reports(n).values()]
    return float(max((training["trainable"] for training in trained if training), default=0))


def cost(report: Report) -> float:
    """Completions that a search spent: mixtures tried, each on every shot."""
    return float(report.get("evaluations") or 0) * len(report.get("details", {}).get("few_shot", ()))


def ends(study: Study, label: str, size: Callable[[Report, str], float]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Results of cem at the largest and at the smallest value of a label, by task."""
    ends: tuple[dict[str, Points], dict[str, Points]] = ({}, {})
    names = [n for n in scored(study) if label in study.labels(n) and stem(study, n) == "cem"]
    for task in dict.fromkeys(study.labels(n).get("task", "") for n in names):
        sized = {
            n: max((size(report, study.labels(n)[label]) for report in study.reports(n).values()), default=math.nan)
            for n in names
            if study.labels(n).get("task", "") == task
        }
        # A value without a run might be the largest or the smallest.
        known = not any(math.isnan(value) for value in sized.values()) and len(sized) > 1
        for end, pick in zip(ends, (max, min), strict=True):
            end[task] = result(study.reports(pick(sized, key=lambda n: sized[n]))) if known else {}
    return ends
