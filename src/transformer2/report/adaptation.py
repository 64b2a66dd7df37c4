"""What an adaptation leaves behind: its table, the picture of its mixing weights, the confusion of its dispatch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer2.report.blind import WITHOUT
from transformer2.report.figures import bare_figure
from transformer2.report.spectrum import spectrum_table
from transformer2.report.table import MCNEMAR, dispatch_lines, report_of
from transformer2.types import Report

__all__ = ["adaptation_table", "alpha_figure", "confusion_figure", "table_of_run"]


def table_of_run(run: Path) -> str:
    """The table of a finished `adapt` or `spectrum` run; empty for another run or an unfinished one."""
    file = run / "report.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if not isinstance(content, dict):
        return ""
    if "spectrum" in content:
        return spectrum_table(content)
    if isinstance(strategies := content.get("strategies"), dict) and strategies:
        return adaptation_table({name: report_of(part, file) for name, part in strategies.items()})
    details = content.get("details")
    strategy = details.get("strategy") if isinstance(details, dict) else None
    return adaptation_table({strategy: report_of(content, file)}) if strategy else ""


def adaptation_table(reports: Mapping[str, Report]) -> str:
    """Strategies, base and controls on the same rows: standard errors, and the paired test against the base."""
    first = next(iter(reports.values()))
    shared = {name: score for name, score in first.controls.items() if name != WITHOUT}  # of each strategy its own
    width = max(map(len, ("base", *shared, *reports)))
    seeds = ", ".join(map(str, first.seeds))
    lines = [f"{first.task}   n = {first.n}, protocol {first.protocol}, seed {seeds}"]
    lines += [f"  {name:<{width}} {score!s:>14}" for name, score in (("base", first.base), *shared.items())]
    for name, report in reports.items():
        gain = 100 * (report.result.accuracy - report.base.accuracy)
        test = f"{gain:+.1f} points on base, p = {report.paired_p:.2g} ({report.details.get('paired_test', MCNEMAR)})"
        lines.append(f"  {name:<{width}} {report.result!s:>14}   {test if report.n else ''}")
    lines += [f"  {name}: {fact}" for name, report in reports.items() for fact in _facts(report)]
    notes = [note for report in reports.values() for note in report.details.get("notes", ())]
    return "\n".join([*lines, *(f"  {note}" for note in dict.fromkeys(notes))])  # those on the base are the same


def _facts(report: Report) -> list[str]:
    """What a strategy has to say besides its score, in lines."""
    search = []
    if report.evaluations is not None:
        rejected = report.details.get("rejected", 0)
        search.append(f"{report.evaluations} mixtures tried{f', {rejected} rejected' if rejected else ''}")
    if report.alpha:
        parts = [f"{name} {_number(value)}" for name, value in report.alpha.items()]
        more = f", ... ({len(parts)} groups)" if len(parts) > 8 else ""
        mix = report.details.get("settings", {}).get("mix", "delta")
        search.append(f"alpha {'' if mix == 'delta' else f'({mix}) '}" + ", ".join(parts[:8]) + more)
    found = [", ".join(search)] if search else []
    if report.details.get("best_on_shots") == 0:
        found.append("no mixture answered a shot right: only the likelihood of the right answers told them apart")
    if selection := report.details.get("selected_on_scored_rows"):
        iteration, scores = selection["iteration"], selection["scores"]
        last = f"the last one has {100 * scores[-1]:.1f} %"
        found.append(f"iteration {iteration} of {len(scores)} was chosen on the scored rows ({last}): no unseen score")
    if WITHOUT in report.controls:
        found.append(f"{WITHOUT} {report.controls[WITHOUT]}")
    for key, words in (("chosen", "chose"), ("likeliest", "likeliest"), ("mean_weights", "mean weights")):
        if shares := report.details.get(key):
            found.append(f"{words} " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()))
    found += dispatch_lines(report)[:2]  # with and without "other"; by category they are in the report
    if report.seconds:
        found.append(", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in report.seconds.items()))
    return found


def _number(value: Any) -> str:
    return "/".join(f"{v:.2f}" for v in value.values()) if isinstance(value, Mapping) else f"{value:.2f}"


def alpha_figure(members: Sequence[str], groups: Sequence[str], trace: Sequence[Mapping[str, Any]]) -> Any:
    """Mixing weights: their course over the generations (left), and where they ended, by group (right).

    Args:
        members: Names of what is weighed.
        groups: Names of the groups of matrices, G.
        trace: One entry a generation: `mean` and `std`, G x members numbers, and `score`.

    Returns:
        A matplotlib figure.
    """
    # Not wider than a card of TensorBoard, which would scale it down, unless there are many groups to show.
    figure = bare_figure((6 + 0.25 * max(0, min(len(groups), 24) - 4), 3.2))
    left, right = figure.subplots(1, 2)
    k = len(members)
    for i, name in enumerate(members):
        mean = [sum(entry["mean"][i::k]) / len(groups) for entry in trace]
        std = [sum(entry["std"][i::k]) / len(groups) for entry in trace]
        steps = range(len(trace))
        left.plot(steps, mean, marker=".", label=name, color=f"C{i}")
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        left.fill_between(steps, low, high, alpha=0.15, color=f"C{i}")
        last = trace[-1]["mean"][i::k]
        places = [g + (i - (k - 1) / 2) * 0.8 / k for g in range(len(groups))]
        right.bar(places, last, width=0.8 / k, color=f"C{i}")
    left.set(xlabel="generation", ylabel="weight of an expert (alpha), mean ± std", title="search")
    left.legend(fontsize=8)
    right.set(title="found weights, by group of matrices", xticks=range(len(groups)) if len(groups) <= 24 else [])
    if len(groups) <= 24:
        right.set_xticklabels(groups, rotation=0 if len(groups) < 4 else 60, fontsize=7)
    return figure


def confusion_figure(confusion: Mapping[str, Mapping[str, int]], columns: Sequence[str], title: str) -> Any:
    """Rows: the true category; columns: the predicted one, "other" among them; shares by row.

    Returns:
        A matplotlib figure.
    """
    figure = bare_figure((0.8 * max(4, len(columns)) + 2.4, 0.45 * max(3, len(confusion)) + 1.2))
    axes = figure.subplots()
    shares = []
    for counts in confusion.values():
        total = max(1, sum(counts.values()))
        shares.append([counts.get(column, 0) / total for column in columns])
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for y, (counts, row) in enumerate(zip(confusion.values(), shares, strict=True)):
        for x, column in enumerate(columns):
            text = f"{100 * row[x]:.0f} %\n{counts.get(column, 0)}"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if row[x] > 0.6 else "black")
    axes.set(xlabel="predicted (% of the row, number of requests)", ylabel="true category", title=title)
    axes.set(xticks=range(len(columns)), yticks=range(len(confusion)))
    axes.set_xticklabels(columns)
    axes.set_yticklabels(confusion)
    return figure
