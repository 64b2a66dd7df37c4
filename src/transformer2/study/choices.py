"""What self-adaptation chose: figures 6 (confusion of the dispatch) and 7 (mixing weights of the few-shot search).

Both read `adapt` runs, of one strategy or of `--strategy all`. Figure 6 takes `details.confusion` of every dispatch:
labelled requests, the same whatever the task, so runs that say the same are one; figure 7 takes `alpha` of cem, the
label `task` says of which task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from transformer2.adaptation import DISPATCHED
from transformer2.report.figures import bar_style, bare_figure
from transformer2.study.cells import Report, alike, apart, display, expert_names, nothing, on_runs, seeds_cell
from transformer2.study.output import Figure, Table
from transformer2.study.results import Group, Study
from transformer2.study.unseen import task_of


def figure6(study: Study) -> list[Table | Figure]:
    """True category against the predicted one, with a column for none of them ("others"); counts of all seeds."""
    found: dict[str, dict[str, dict[int, Any]]] = {}  # strategy -> runs -> seed -> confusion
    for group, strategy, seed, report in _adapted(study):
        if strategy in DISPATCHED and (confusion := report.get("details", {}).get("confusion")):
            found.setdefault(strategy, {}).setdefault(group.name, {})[seed] = confusion
    counts: dict[str, dict[str, Counter[str]]] = {}  # strategy -> true category -> predicted ones
    seeds: dict[str, list[int]] = {}
    for strategy, of_runs in found.items():
        for more, _, by_seed in alike([(study.groups[name], of_seeds) for name, of_seeds in of_runs.items()]):
            name = display(strategy) + more
            counts[name], seeds[name] = {}, [*by_seed]
            for confusion in by_seed.values():
                for label, predicted in confusion.items():
                    counts[name].setdefault(label, Counter()).update(predicted)
    if not counts:
        return [nothing(study, "Confusion of the dispatch")]
    labels = list(dict.fromkeys(label for of in counts.values() for label in of))
    named = [label for label in labels if label != "other"]
    columns = [*named, "others"]
    table: dict[str, list[list[int]]] = {}
    for strategy, of in counts.items():
        known = [[of.get(label, Counter())[column] for column in named] for label in labels]
        totals = [of.get(label, Counter()).total() for label in labels]
        table[strategy] = [[*row, total - sum(row)] for row, total in zip(known, totals, strict=True)]

    def draw() -> Any:
        figure = bare_figure((1.0 + 3.5 * len(table), 0.8 + 0.55 * len(labels) + 0.8))
        grid = figure.subplots(1, len(table), squeeze=False, sharey=True)[0]
        for axes, (strategy, numbers) in zip(grid, table.items(), strict=True):
            shares = [[100 * n / max(1, sum(row)) for n in row] for row in numbers]
            axes.imshow(shares, vmin=0, vmax=100, cmap="Greys", aspect="auto")
            for y, row in enumerate(shares):
                for x, share in enumerate(row):
                    axes.text(x, y, f"{share:.0f}", ha="center", va="center", color="white" if share > 55 else "black")
            axes.set(
                xlabel="predicted category",
                title=strategy,
                xticks=range(len(columns)),
                yticks=range(len(labels)),
            )
            axes.set_xticklabels(columns, rotation=30, ha="right")
            axes.set_yticklabels(labels)
        grid[0].set_ylabel("true category (cells: % of its requests)")
        return figure

    rows = [
        [strategy, label, *map(str, row)]
        for strategy, numbers in table.items()
        for label, row in zip(labels, numbers, strict=True)
    ]
    notes = [
        "% of the requests of a category; others: named as none of the experts', or no category was named",
        "seeds: " + "; ".join(f"{strategy} {', '.join(map(str, of))}" for strategy, of in seeds.items()),
    ]
    heads = ["strategy", "true category", *columns]
    return [
        Figure(study.name, "Confusion of the dispatch", draw, notes),
        Table(f"{study.name}_counts", "Requests by category", heads, rows, ["counts of all seeds"]),
    ]


def figure7(study: Study) -> list[Table | Figure]:
    """Alpha of each expert by task: mean over seeds, and the seeds as points; means over groups where there are any."""
    mixed = [of for of in _adapted(study) if of[1] == "cem" and of[3].get("alpha")]
    tasks = {group.name: task_of(group) or str(report["task"]) for group, _, _, report in mixed}
    more = apart([study.groups[name] for name in tasks], lambda group: tasks[group.name])
    found: dict[str, dict[int, dict[str, float]]] = {}
    where: dict[str, Group] = {}
    for group, _, seed, report in mixed:
        task = tasks[group.name] + more[group.name]
        alpha = _alpha(report["alpha"])
        names = expert_names(study, alpha)
        found.setdefault(task, {})[seed] = {names[expert]: value for expert, value in alpha.items()}
        where[task] = group
    if not found:
        return [nothing(study, "Mixing weights")]
    experts = list(dict.fromkeys(expert for seeds in found.values() for alpha in seeds.values() for expert in alpha))

    def draw() -> Any:
        figure = bare_figure((2.6 + 1.7 * len(found), 3.6))
        axes = figure.subplots()
        width = 0.8 / len(experts)
        for i, expert in enumerate(experts):
            for place, seeds in enumerate(found.values()):
                values = [alpha[expert] for alpha in seeds.values() if expert in alpha]
                if not values:
                    continue
                x = place + (i - (len(experts) - 1) / 2) * width
                axes.bar(x, fmean(values), width * 0.92, label=None if place else expert, **bar_style(i))
                spread = [x + width * 0.22 * (k / max(1, len(values) - 1) - 0.5) for k in range(len(values))]
                axes.plot(spread, values, "o", color="black", markersize=3.5, markerfacecolor="white")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xticks=range(len(found)), xlabel="target task", ylabel="mixing weight (alpha) of the expert")
        axes.set_xticklabels(found)
        figure.legend(fontsize=8, title="expert", loc="outside right upper")
        axes.grid(alpha=0.25, axis="y")
        return figure

    rows = []
    for task, seeds in found.items():
        means = [[alpha[expert] for alpha in seeds.values() if expert in alpha] for expert in experts]
        rows.append([task, *(f"{fmean(of):.2f}" if of else "–" for of in means), seeds_cell(where[task].runs)])
    below = ["means over seeds", *on_runs(study, where.values())]
    notes = ["bars: mean over seeds; points: seeds; z' = 1 + sum of alpha (z - 1), so 0 leaves an expert out"]
    return [
        Figure(study.name, "Mixing weights by expert and task", draw, notes),
        Table(f"{study.name}_alpha", "Mixing weights", ["task", *experts, "seeds"], rows, below),
    ]


def _adapted(study: Study) -> Iterator[tuple[Group, str, int, Report]]:
    """(runs, strategy, seed, report) of every adaptation that is done."""
    for group in study.groups.values():
        for seed, whole in group.reports.items():
            own = str(whole.get("details", {}).get("strategy", ""))
            for strategy, report in whole.get("strategies", {own: whole}).items():
                if strategy:
                    yield group, strategy, seed, report


def _alpha(alpha: Mapping[str, Any]) -> dict[str, float]:
    """Expert -> weight; of several groups of matrices the mean."""
    if not all(isinstance(value, Mapping) for value in alpha.values()):
        return {name: float(value) for name, value in alpha.items()}
    members = dict.fromkeys(name for group in alpha.values() for name in group)
    return {name: fmean(group[name] for group in alpha.values()) for name in members}
