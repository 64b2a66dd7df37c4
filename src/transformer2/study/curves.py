"""Learning curves: figures 4 (every expert, with the step that validation chose) and 9 (LoRA over learning rates).

Both read every `fit` of the study: `details.training` with its `curve`, `best_step` and `best_validation`. The label
`skill` says which panel of figure 4 a run belongs to, the name before it which line; the label `lr` is what figure 9
compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from transformer2.report.figures import bare_figure, style
from transformer2.study.cells import Report, absent, display, number, on_runs, runs_of, seeds_cell, stem
from transformer2.study.output import Figure, Table
from transformer2.study.results import Study

COLLAPSE = 10.0  # points from the best validation to the last that are called a collapse
Curves = Mapping[int, Mapping[str, Any]]  # seed -> details.training


def figure4(study: Study) -> list[Table | Figure]:
    """Validation accuracy over steps: mean over seeds, its standard error, and each seed's chosen checkpoint."""
    panels: dict[str, dict[str, Curves]] = {}
    for name in study.names:
        if found := curves(study, name):
            panels.setdefault(study.labels(name).get("skill", ""), {})[display(stem(study, name))] = found
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
            _dress(axes, skill or study.title)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("validation accuracy, %")
        grid.flat[0].legend(fontsize=8, loc="lower right")
        return figure

    notes = ["line: mean over seeds; band: ± its standard error; open markers: what each seed's validation chose"]
    return [Figure(study.name, "Learning curves", draw, notes)]


def figure9(study: Study) -> list[Table | Figure]:
    """A method over learning rates, each seed a line of its own: does it hold, or fall from its best validation?

    Raises:
        ConfigError: A rate that is no number.
    """
    rates = sorted((n for n in study.names if "lr" in study.labels(n)), key=lambda n: number(study, n, "lr"))
    found = {name: curves(study, name) for name in rates if curves(study, name) or not study.reports(name)}
    rates = [*found]
    if not any(found.values()):
        return [nothing(study, "Learning rates")]

    def draw() -> Any:
        drawn = [name for name in rates if found[name]]
        figure = bare_figure((1.2 + 2.6 * len(drawn), 3.6))
        for i, (axes, name) in enumerate(
            zip(figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0], drawn, strict=True)
        ):
            for training in found[name].values():
                steps, accuracies = _points(training)
                axes.plot(steps, accuracies, color=style(i)["color"], alpha=0.45, linewidth=1)
            _line(axes, found[name], i, "")
            _dress(axes, f"learning rate {_rate(study, name)}")
            if not i:
                axes.set_ylabel("validation accuracy, %")
        return figure

    rows = []
    for name in rates:
        falls = {seed: _fall(training) for seed, training in found[name].items()}
        best, last = ([f(_points(t)[1]) for t in found[name].values()] for f in (max, lambda values: values[-1]))
        runs = runs_of(study, name)
        if not falls:
            rows.append([_rate(study, name), *[absent(runs)] * 3, "–", seeds_cell(runs)])
            continue
        collapsed = sum(fall > COLLAPSE for fall in falls.values())
        means = [f"{fmean(values):.1f}" for values in (best, last, list(falls.values()))]
        rows.append([_rate(study, name), *means, f"{collapsed} of {len(falls)}", seeds_cell(runs)])
    columns = ["learning rate", "best validation, %", "last validation, %", "fall, points", "collapsed", "seeds"]
    notes = [f"means over seeds; collapsed: the last validation is more than {COLLAPSE:g} points below the best"]
    notes += on_runs(study, rates)
    thin = ["thin lines: seeds; thick: their mean; open markers: the checkpoint that each seed's validation chose"]
    return [
        Figure(study.name, "Learning curves over learning rates", draw, thin),
        Table(f"{study.name}_rates", "Stable or collapsing", columns, rows, notes),
    ]


def curves(study: Study, name: str) -> dict[int, Mapping[str, Any]]:
    """Seed -> what was trained, of the runs of a name that were validated."""
    found = {seed: _training(report) for seed, report in study.reports(name).items()}
    return {seed: training for seed, training in found.items() if training.get("curve")}


def _training(report: Report) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report.get("details", {}).get("training", {})
    return found


def _points(training: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    return [p["step"] for p in training["curve"]], [100 * p["accuracy"] for p in training["curve"]]


def _fall(training: Mapping[str, Any]) -> float:
    accuracies = _points(training)[1]
    return max(accuracies) - accuracies[-1]


def _line(axes: Any, found: Curves, index: int, label: str) -> None:
    """The mean over seeds, where all have a point, with a band of its standard error, and the chosen checkpoints."""
    by_seed = [dict(zip(*_points(training), strict=True)) for training in found.values()]
    steps = sorted(set.intersection(*(set(of) for of in by_seed)))
    means = [fmean(of[step] for of in by_seed) for step in steps]
    errors = [stdev(of[step] for of in by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else 0 for step in steps]
    look = style(index)
    axes.plot(steps, means, color=look["color"], linestyle=look["linestyle"], linewidth=2, label=label or None)
    low, high = ([m + sign * e for m, e in zip(means, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)
    chosen = [(t["best_step"], 100 * t["best_validation"]) for t in found.values() if t.get("best_step") is not None]
    if chosen:
        axes.plot(
            *zip(*chosen, strict=True), linestyle="", marker=look["marker"], markersize=7, markerfacecolor="none",
            markeredgecolor=look["color"], markeredgewidth=1.4,
        )  # fmt: skip


def _dress(axes: Any, title: str) -> None:
    axes.set(xlabel="optimizer steps", title=title, ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)


def _rate(study: Study, name: str) -> str:
    return f"{number(study, name, 'lr'):g}"


def nothing(study: Study, title: str) -> Table:
    """What stands in the place of a figure without a run, each of them named."""
    rows = []
    for runs in (runs_of(study, name) for name in study.names):
        why = "nothing to draw" if any(run.state == "done" for run in runs) else absent(runs)
        rows.append([runs[0].name, why, seeds_cell(runs)])
    return Table(study.name, title, ["run", "", "seeds"], rows, ["no run has anything to draw yet"])
