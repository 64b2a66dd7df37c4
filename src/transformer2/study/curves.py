"""Learning curves: figures 4 (every expert, with the step that validation chose) and 9 (LoRA over learning rates).

Both read every `fit` of the study: `details.training` with its `curve`, `best_step` and `best_validation`. The label
`skill` says which panel of figure 4 a run belongs to, the name before it which line; the label `lr` is what figure 9
compares. `steps` (steps and CPU seconds to a target: how fast each method learns) reads `<method>-<skill>-<target>`,
fits that validate often; the label `target` is a validation accuracy in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from transformer2.report.figures import bare_figure, style
from transformer2.study.cells import (
    absent,
    accuracies,
    apart,
    display,
    not_drawn,
    nothing,
    number,
    on_runs,
    seeds_cell,
    trainings,
)
from transformer2.study.output import Figure, Table
from transformer2.study.results import Study
from transformer2.study.statistics import estimate

COLLAPSE = 10.0  # points from the best validation to the last that are called a collapse
Curves = Mapping[int, Mapping[str, Any]]  # seed -> details.training


def figure4(study: Study) -> list[Table | Figure]:
    """Validation accuracy over steps: mean over seeds, its standard error, and each seed's chosen checkpoint."""
    panels: dict[str, dict[str, Curves]] = {}
    curves = [(group, found) for group in study.groups.values() if (found := trainings(group.reports))]
    more = apart([group for group, _ in curves], lambda group: (group.labels.get("skill", ""), group.stem))
    for group, found in curves:
        panels.setdefault(group.labels.get("skill", ""), {})[display(group.stem) + more[group.name]] = found
    if not panels:
        return [nothing(study, "Learning curves")]

    def draw() -> Any:
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = bare_figure((1.2 + 3.4 * columns, 0.6 + 3.2 * rows))
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, (skill, lines) in zip(grid.flat, panels.items(), strict=False):
            for i, (label, found) in enumerate(lines.items()):
                _line(axes, found, i, label)
            _label_axes(axes, skill or study.title)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("validation accuracy, %")
        grid.flat[0].legend(fontsize=8, loc="lower right")
        return figure

    notes = ["line: mean over seeds; band: ± its standard error; open markers: what each seed's validation chose"]
    notes += not_drawn(study, {group.name: found for group, found in curves})
    return [Figure(study.name, "Learning curves", draw, notes)]


def figure9(study: Study) -> list[Table | Figure]:
    """A method over learning rates, each seed a line of its own: does it hold, or fall from its best validation?

    Raises:
        ConfigError: A rate that is no number.
    """
    swept = sorted((g for g in study.groups.values() if "lr" in g.labels), key=lambda group: number(group, "lr"))
    rates = [(group, trainings(group.reports)) for group in swept]
    rates = [(group, found) for group, found in rates if found or not group.reports]
    more = apart([group for group, _ in rates], lambda group: number(group, "lr"))
    names = {group.name: f"{number(group, 'lr'):g}{more[group.name]}" for group, _ in rates}
    drawn = [(names[group.name], found) for group, found in rates if found]
    if not drawn:
        return [nothing(study, "Learning rates")]

    def draw() -> Any:
        figure = bare_figure((1.2 + 2.6 * len(drawn), 3.6))
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for i, (axes, (rate, found)) in enumerate(zip(panels, drawn, strict=True)):
            for training in found.values():
                at = [point["step"] for point in training["curve"]]
                axes.plot(at, accuracies(training), color=style(i)["color"], alpha=0.45, linewidth=1)
            _line(axes, found, i, "")
            _label_axes(axes, f"learning rate {rate}")
        panels[0].set_ylabel("validation accuracy, %")
        return figure

    rows = []
    for group, found in rates:
        cells = [absent(group.runs)] * 3 + ["–"]
        if found:
            of_seeds = [accuracies(training) for training in found.values()]
            best, last = [max(curve) for curve in of_seeds], [curve[-1] for curve in of_seeds]
            falls = [high - end for high, end in zip(best, last, strict=True)]
            collapsed = sum(fall > COLLAPSE for fall in falls)
            cells = [*(f"{fmean(of):.1f}" for of in (best, last, falls)), f"{collapsed} of {len(falls)}"]
        rows.append([names[group.name], *cells, seeds_cell(group.runs)])
    columns = ["learning rate", "best validation, %", "last validation, %", "fall, points", "collapsed", "seeds"]
    notes = [f"means over seeds; collapsed: the last validation is more than {COLLAPSE:g} points below the best"]
    notes += on_runs(study, [group for group, _ in rates])
    thin = ["thin lines: seeds; thick: their mean; open markers: the checkpoint that each seed's validation chose"]
    return [
        Figure(study.name, "Learning curves over learning rates", draw, thin),
        Table(f"{study.name}_rates", "Stable or collapsing", columns, rows, notes),
    ]


def steps(study: Study) -> list[Table | Figure]:
    """The first validation at the target, by method and seed.

    Raises:
        ConfigError: A target that is no percentage.
    """
    rows = []
    shown = [
        group
        for group in study.groups.values()
        if {"skill", "target"} <= group.labels.keys() and trainings(group.reports).keys() == group.reports.keys()
    ]
    more = apart(shown, lambda group: (group.labels["skill"], number(group, "target", 100), group.stem))
    for group in shown:
        labels, reports, found = group.labels, group.reports, trainings(group.reports)
        target = number(group, "target", 100)
        at_target = {
            seed: next((point for point in training["curve"] if point["accuracy"] >= target / 100), None)
            for seed, training in found.items()
        }
        reached = [at_target.get(run.seed) for run in group.runs]
        first = ["–" if at is None else f"{at['step']}" for at in reached]
        steps_of = [at if run.seed in found else absent([run]) for at, run in zip(first, group.runs, strict=True)]
        tested = estimate(report["result"] for report in reports.values())
        rows.append(
            [
                f"{labels['skill']}, {target:g} %",
                display(group.stem) + more[group.name],
                ", ".join(steps_of),
                _mean_of(reached, "step"),
                _mean_of(reached, "cpu_seconds"),
                "–" if tested is None else str(tested),
                f"{max((training['steps'] for training in found.values()), default=0)}",
                f"{max((training['trainable'] for training in found.values()), default=0):,}",
                seeds_cell(group.runs),
            ]
        )
    columns = ["skill, target", "method", "steps of each seed", "steps, mean", "CPU-s, mean"]
    columns += ["test accuracy of the best, %", "of steps", "trainable", "seeds"]
    notes = [
        "steps to the first validation (every few steps) at the target; CPU seconds of steps alone, without validation",
        "– : not within the run; a mean over the seeds that got there says how many of how many they are",
    ]
    return [Table(study.name, "Steps to the same accuracy", columns, rows, [*notes, *on_runs(study, shown)])]


def _mean_of(reached: Sequence[Mapping[str, Any] | None], key: str) -> str:
    values = [point[key] for point in reached if point is not None]
    if not values:
        return "–"
    return f"{fmean(values):.1f}" + (f" ({len(values)} of {len(reached)})" if len(values) < len(reached) else "")


def _line(axes: Any, found: Curves, index: int, label: str) -> None:
    """The mean over seeds, where all have a point, with a band of its standard error, and the chosen checkpoints."""
    by_seed = [{point["step"]: 100 * point["accuracy"] for point in of["curve"]} for of in found.values()]
    steps = sorted(set.intersection(*(set(of) for of in by_seed)))
    means = [fmean(of[step] for of in by_seed) for step in steps]
    errors = [stdev(of[step] for of in by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else 0 for step in steps]
    look = style(index)
    axes.plot(steps, means, color=look["color"], linestyle=look["linestyle"], linewidth=2, label=label or None)
    low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)
    best = ((training.get("best_step"), training.get("best_validation")) for training in found.values())
    chosen = [(step, 100 * score) for step, score in best if score is not None]  # none, where no validation was due
    axes.plot(
        *zip(*chosen, strict=True), linestyle="", marker=look["marker"], markersize=7, markerfacecolor="none",
        markeredgecolor=look["color"], markeredgewidth=1.4,
    )  # fmt: skip


def _label_axes(axes: Any, title: str) -> None:
    axes.set(xlabel="optimizer steps", title=title, ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
