"""Spectra and how z drifts over them: the table of a `spectrum` run, and its figures (paper, Figures 10 and 11).

Reads plain report.json: `spectrum` (of each matrix) and `drift`; experts/spectrum.py says what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from transformer2.report.figures import bar_style, bare_figure, style

__all__ = [
    "LORA",
    "NAMES",
    "by_kind",
    "drift_figure",
    "layers_figure",
    "share_figure",
    "share_of_top",
    "spectrum_table",
]

Matrix = Mapping[str, Any]
LORA = 16  # the rank that the paper's LoRA has
NAMES = {"sum": "sum of singular values", "sum_of_squares": "sum of their squares"}


def spectrum_table(report: Mapping[str, Any]) -> str:
    """By kind of matrix, means over layers: the shares of the top 16, and the ranks for 90 %; and the drift, if any."""
    lines = [f"{report['base_model']}   {len(report['spectrum'])} matrices, mean over layers"]
    head = f"{'sum, top ' + str(LORA):>13} {'squares, top ' + str(LORA):>17} {'90 % of sum':>12} {'of squares':>11}"
    kinds = by_kind(report["spectrum"])
    width = max(map(len, [*kinds, "tenth of the indices"]))
    lines.append(f"  {'matrices':<{width}} {'rank':>6} {head}")
    for kind, matrices in kinds.items():
        rank = fmean(m["rank"] for m in matrices)
        shares = [fmean(share_of_top(m, name, LORA) for m in matrices) for name in NAMES]
        ranks = [fmean(m[f"rank_of_{name}"]["90"] for m in matrices) for name in NAMES]
        cells = f"{100 * shares[0]:>11.1f} % {100 * shares[1]:>15.1f} % {ranks[0]:>12.0f} {ranks[1]:>11.0f}"
        lines.append(f"  {kind:<{width}} {rank:>6.0f} {cells}")
    if found := report.get("drift"):
        lines += ["", f"expert {found['expert']}: how far z moved"]
        lines.append(
            f"  {'tenth of the indices':<{width}} {'mean |z - 1|':>13} {'of the change':>14} {'of the weight':>14}"
        )
        columns = (found["kinds"]["all"][key] for key in ("mean_abs", "change", "weight"))
        for i, (moved, change, weight) in enumerate(zip(*columns, strict=True)):
            if moved is not None:
                name = "1 (largest)" if i == 0 else f"{i + 1}"
                lines.append(f"  {name:<{width}} {moved:>13.4f} {100 * change:>12.1f} % {100 * weight:>12.1f} %")
    lines += [f"  {note}" for note in report.get("notes", ())]
    return "\n".join(lines)


def by_kind(matrices: Iterable[Matrix]) -> dict[str, list[Matrix]]:
    """Kind of matrix -> those of all layers."""
    kinds: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        kinds.setdefault(matrix["kind"], []).append(matrix)
    return kinds


def share_figure(matrices: Sequence[Matrix], title: str) -> Any:
    """Share of the spectrum in the top r, by kind of matrix: mean over layers, and the range from layer to layer.

    Returns:
        A matplotlib figure.
    """
    figure = bare_figure((9.6, 3.9))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, words) in zip(panels, NAMES.items(), strict=True):
        for i, (kind, found) in enumerate(by_kind(matrices).items()):
            tops = sorted({int(top) for m in found for top in m[name]})
            shares = [[100 * share_of_top(m, name, top) for m in found] for top in tops]
            axes.plot(tops, [fmean(of) for of in shares], label=kind, markersize=4, **style(i))
            _band(axes, tops, shares, i, 0.12)
        axes.axvline(LORA, color="0.4", linewidth=1, linestyle=":")
        axes.text(LORA, 2, f" r = {LORA}", color="0.3", fontsize=8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(xlabel="r, number of largest singular values", title=words, ylim=(0, 102))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("share of the spectrum in the top r, %")
    panels[1].legend(fontsize=8, loc="lower right")
    figure.suptitle(title)
    return figure


def layers_figure(matrices: Sequence[Matrix], title: str) -> Any:
    """By layer and kind of matrix: the share of the top 16, and the rank that holds 90 %, both of the sum.

    Returns:
        A matplotlib figure; matrices outside of decoder layers are left out.
    """
    figure = bare_figure((9.6, 3.9))
    left, right = figure.subplots(1, 2)
    for i, (kind, found) in enumerate(by_kind(m for m in matrices if m["layer"] is not None).items()):
        layers = sorted({m["layer"] for m in found})
        of = {layer: [m for m in found if m["layer"] == layer] for layer in layers}  # several in an MoE layer
        shares = [100 * fmean(share_of_top(m, "sum", LORA) for m in of[layer]) for layer in layers]
        ranks = [fmean(100 * m["rank_of_sum"]["90"] / m["rank"] for m in of[layer]) for layer in layers]
        left.plot(layers, shares, label=kind, markersize=4, **style(i))
        right.plot(layers, ranks, markersize=4, **style(i))
    left.set(ylabel=f"share of the sum in the top {LORA}, %", ylim=(0, None))
    right.set(ylabel="rank for 90 % of the sum, % of the full rank", ylim=(0, 100))
    for axes in (left, right):
        axes.set_xlabel("decoder layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    left.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def drift_figure(drifts: Mapping[str, Sequence[Mapping[str, Sequence[float | None]]]], title: str) -> Any:
    """By tenth of the indices: mean |z - 1|, and the share of the change of the weights beside that of the weights.

    Args:
        drifts: Name of an expert -> the figures of `all` of its drift, one entry a seed.
        title: Over both.

    Returns:
        A matplotlib figure.
    """
    figure = bare_figure((9.6, 3.9))
    left, right = figure.subplots(1, 2)
    width = 0.8 / (len(drifts) + 1)
    for i, (name, seeds) in enumerate(drifts.items()):
        moved, change, weight = (_by_tenth([seed[key] for seed in seeds]) for key in ("mean_abs", "change", "weight"))
        tenths = list(moved)
        left.plot(tenths, [fmean(moved[x]) for x in tenths], label=name, markersize=5, **style(i))
        if len(seeds) > 1:
            _band(left, tenths, moved.values(), i, 0.15)
        places = [x + (i + 1 - len(drifts) / 2) * width for x in tenths]
        right.bar(places, [100 * fmean(change[x]) for x in tenths], width, label=f"change, {name}", **bar_style(i))
        if not i:
            places = [x - len(drifts) / 2 * width for x in tenths]
            look = {"label": "the weights themselves", "color": "0.75", "edgecolor": "0.3"}
            right.bar(places, [100 * fmean(weight[x]) for x in tenths], width, **look)
    left.set(ylabel="mean |z − 1|", ylim=(0, None))
    right.set(ylabel="share of the squared norm, %")
    for axes in (left, right):
        axes.set(xlabel="tenth of the singular values (1: the largest)", xticks=range(1, 11))
        axes.grid(alpha=0.25, axis="y")
        axes.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def _band(axes: Any, at: Sequence[int], values: Iterable[Sequence[float]], index: int, alpha: float) -> None:
    """From the least to the most of the values at each place."""
    low, high = zip(*((min(of), max(of)) for of in values), strict=True)
    axes.fill_between(at, low, high, alpha=alpha, color=style(index)["color"], linewidth=0)


def _by_tenth(seeds: Sequence[Sequence[float | None]]) -> dict[int, list[float]]:
    """Tenth (from 1) -> the values of all seeds, where there are any."""
    values = {i + 1: [v for v in of if v is not None] for i, of in enumerate(zip(*seeds, strict=True))}
    return {tenth: of for tenth, of in values.items() if of}


def share_of_top(matrix: Matrix, name: str, top: int) -> float:
    """The share of the top `top`; of a smaller matrix all of it, and between two noted ranks the linear course."""
    known = [(int(rank), share) for rank, share in matrix[name].items()]
    below = max((k for k in known if k[0] <= top), default=(0, 0.0))
    above = min((k for k in known if k[0] >= top), default=(matrix["rank"], 1.0))
    if above[0] <= below[0]:
        return float(below[1])
    return float(below[1] + (above[1] - below[1]) * (top - below[0]) / (above[0] - below[0]))
