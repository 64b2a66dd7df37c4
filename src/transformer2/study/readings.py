"""Numbers that claims are about, out of the reports of a study: points by seed, for each skill, task or setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from transformer2.study.cells import Report, accuracies, apart, points, trainings
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
    curves = {seed: accuracies(training) for seed, training in trainings(reports).items()}
    return {seed: max(curve) - curve[-1] for seed, curve in curves.items()}


def by_skill(study: Study, name: str, reading: Reading) -> dict[str, Points]:
    """A method on each of its skills."""
    groups = [group for group in study.scored if "skill" in group.labels and group.stem == name]
    more = apart(groups, skill_of)
    return {skill_of(group) + more[group.name]: reading(group.reports) for group in groups}


def by_label(study: Study, name: str) -> dict[str, Points]:
    """Results of runs of that name, by the values of their matrix."""
    return {", ".join(g.labels.values()): result(g.reports) for g in study.scored if g.stem == name}


def by_modules(study: Study, name: str, goal: str, reading: Reading = result) -> dict[str, Points]:
    """A method under an objective, for each set of modules that the study names; {} where no run is done."""
    groups = [group for group in study.scored if (method(group), objective(group)) == (name, goal)]
    several = len(set(map(skill_of, groups))) > 1
    more = apart(groups, lambda group: (modules(group), skill_of(group)))
    return {modules(g) + (f", {skill_of(g)}" if several else "") + more[g.name]: reading(g.reports) for g in groups}


def strategy(study: Study, name: str) -> dict[str, Points]:
    """A strategy on each unseen task."""
    rows = {task: rows_of(study, task, controls=False).get(name) for task in tasks(study)}
    return {task: result(row.reports) if row else {} for task, row in rows.items()}


def trainable(study: Study, name: str) -> float:
    """Trained numbers of a method, the largest over its runs; 0 where none is done."""
    reports = [report for g in study.groups.values() if g.stem == name for report in g.reports.values()]
    trained = [report.get("details", {}).get("training") for report in reports]
    return float(max((training["trainable"] for training in trained if training), default=0))


def cost(report: Report) -> float:
    """Completions that a search spent: mixtures tried, each on every shot."""
    return float(report.get("evaluations") or 0) * len(report.get("details", {}).get("few_shot", ()))


def ends(study: Study, label: str, size: Callable[[Report, str], float]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Results of cem at the largest and at the smallest value of a label, by task."""
    ends: tuple[dict[str, Points], dict[str, Points]] = ({}, {})
    groups = [group for group in study.scored if label in group.labels and group.stem == "cem"]
    for task in dict.fromkeys(group.labels.get("task", "") for group in groups):
        sized = [
            (max((size(report, group.labels[label]) for report in group.reports.values()), default=math.nan), group)
            for group in groups
            if group.labels.get("task", "") == task
        ]
        # A value without a run might be the largest or the smallest.
        known = not any(math.isnan(value) for value, _ in sized) and len(sized) > 1
        for end, pick in zip(ends, (max, min), strict=True):
            end[task] = result(pick(sized, key=lambda pair: pair[0])[1].reports) if known else {}
    return ends
