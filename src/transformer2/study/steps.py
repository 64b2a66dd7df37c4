"""Steps and CPU seconds to a target: how fast each method learns.

Runs are `<method>-<skill>-<target>`, fits that validate often; the label `target` is a validation accuracy in per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from transformer2.study.cells import absent, display, number, on_runs, runs_of, seeds_cell, stem
from transformer2.study.curves import curves
from transformer2.study.output import Figure, Table
from transformer2.study.results import Study
from transformer2.study.statistics import estimate


def steps(study: Study) -> list[Table | Figure]:
    """The first validation at the target, by method and seed.

    Raises:
        ConfigError: A target that is no percentage.
    """
    rows, shown = [], []
    for name in study.names:
        labels, reports, facts = study.labels(name), study.reports(name), curves(study, name)
        if not {"skill", "target"} <= labels.keys() or facts.keys() != reports.keys():
            continue
        shown.append(name)
        runs, target = runs_of(study, name), number(study, name, "target", 100)
        reached = {seed: reached_at(of["curve"], target / 100) for seed, of in facts.items()}
        there = [point for point in reached.values() if point is not None]
        tested = estimate(report["result"] for report in reports.values())
        rows.append(
            [
                f"{labels['skill']}, {target:g} %",
                display(stem(study, name)),
                ", ".join("–" if at is None else f"{at['step']}" for at in reached.values()) or absent(runs),
                _mean_of(there, len(reached), "step"),
                _mean_of(there, len(reached), "cpu_seconds"),
                "–" if tested is None else str(tested),
                f"{max((of['steps'] for of in facts.values()), default=0)}",
                f"{max((of['trainable'] for of in facts.values()), default=0):,}",
                seeds_cell(runs),
            ]
        )
    columns = ["skill, target", "method", "steps of each seed", "steps, mean", "CPU-s, mean"]
    columns += ["test accuracy of the best, %", "of steps", "trainable", "seeds"]
    notes = [
        "steps to the first validation (every few steps) at the target; CPU seconds of steps alone, without validation",
        "– : not within the run; a mean over the seeds that got there says how many of how many they are",
    ]
    return [Table(study.name, "Steps to the same accuracy", columns, rows, [*notes, *on_runs(study, shown)])]


def reached_at(curve: Sequence[Mapping[str, Any]], target: float) -> Mapping[str, Any] | None:
    """The first point of a learning curve at a share of right answers."""
    return next((point for point in curve if point["accuracy"] >= target), None)


def _mean_of(points_there: Sequence[Mapping[str, Any]], seeds: int, key: str) -> str:
    if not points_there:
        return "–"
    mean = f"{fmean(point[key] for point in points_there):.1f}"
    return mean if len(points_there) == seeds else f"{mean} ({len(points_there)} of {seeds})"
