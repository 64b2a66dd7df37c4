"""Spectra and drift: figures 10 and 11 (share of the spectrum in the top r, by module and by layer), and how z drifts.

All read `spectrum` runs; of the spectra of one base those of one seed, for they are the same in all. `drift` reads the
runs with an expert: the label `skill`, or the name, says whose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from transformer2.report.spectrum import LORA, NAMES, by_kind, drift_figure, layers_figure, share_figure, share_of_top
from transformer2.study.cells import apart, nothing, on_runs, seeds_cell, skill_or_name
from transformer2.study.output import Figure, Table
from transformer2.study.results import Group, Study

Draw = Callable[[Sequence[Mapping[str, Any]], str], Any]


def figure10(study: Study) -> list[Table | Figure]:
    """Share of the spectrum in the top r, by kind of matrix, with the numbers below."""
    rows = []
    spectra = _spectra(study)
    for group, base, report in spectra:
        for kind, matrices in by_kind(report["spectrum"]).items():
            shares = [f"{100 * fmean(share_of_top(m, what, LORA) for m in matrices):.1f}" for what in NAMES]
            ranks = [f"{fmean(m[f'rank_of_{what}']['90'] for m in matrices):.0f}" for what in NAMES]
            full = f"{fmean(m['rank'] for m in matrices):.0f}"
            rows.append([base, kind, full, shares[0], ranks[0], shares[1], ranks[1], seeds_cell(group.runs)])
    columns = ["base", "matrices", "rank", f"sum, top {LORA}, %", "rank for 90 % of it"]
    columns += [f"squares, top {LORA}, %", "rank for 90 % of it", "run"]
    notes = ["means over layers; squares: the share of ||W||² that the best approximation of that rank keeps"]
    notes += on_runs(study, [group for group, *_ in spectra])
    table = Table(f"{study.name}_ranks", f"Share of the top {LORA}, and the rank for 90 %", columns, rows, notes)
    title = "Share of the spectrum in the top r, by module"
    figures = _figures(
        study, title, share_figure, "line: mean over layers; band: from the least to the most of a layer"
    )
    return [*figures, table] if rows else figures


def figure11(study: Study) -> list[Table | Figure]:
    """The same by layer."""
    return _figures(study, "Share of the spectrum by layer", layers_figure, f"top {LORA}: the rank of the paper's LoRA")


def drift(study: Study) -> list[Table | Figure]:
    """By tenth of the singular values: mean |z - 1|, and where the change of the weights is."""
    found = []
    for group in study.groups.values():
        if drifts := [report["drift"]["kinds"]["all"] for report in group.reports.values() if "drift" in report]:
            found.append((group, drifts))
    if not found:
        return [nothing(study, "Drift of z")]
    title = "Drift of z over the spectrum"
    more = apart([group for group, _ in found], skill_or_name)
    names = {group.name: skill_or_name(group) + more[group.name] for group, _ in found}
    draw = partial(drift_figure, {names[group.name]: drifts for group, drifts in found}, title)
    rows = []
    for group, drifts in found:
        cells = []
        for key, scale, form in (("mean_abs", 1, "{:.3f}"), ("change", 100, "{:.1f}"), ("weight", 100, "{:.1f}")):
            for tenth in (0, 4, 9):
                values = [drift[key][tenth] for drift in drifts if drift[key][tenth] is not None]
                cells.append(form.format(scale * fmean(values)) if values else "–")
        rows.append([names[group.name], *cells, seeds_cell(group.runs)])
    heads = [
        f"{what}, {tenth} tenth" for what in ("|z - 1|", "change, %", "weight, %") for tenth in ("1st", "5th", "10th")
    ]
    notes = [
        "means over seeds; change: share of ||W' - W||², weight: share of ||W||², of the largest, middle and smallest",
        "off the principal directions, as arXiv 2511.08567 has it, would be change below weight in the 1st tenth",
        *on_runs(study, [group for group, _ in found]),
    ]
    bands = "line: mean over seeds; band: from the least to the most of a seed; bars: means"
    return [
        Figure(study.name, title, draw, [bands]),
        Table(f"{study.name}_tenths", title, ["expert", *heads, "seeds"], rows, notes),
    ]


def _spectra(study: Study) -> list[tuple[Group, str, Mapping[str, Any]]]:
    """The first runs with a spectrum of each base and set of matrices, what to call it, and that report."""
    found: dict[Any, tuple[Group, Mapping[str, Any]]] = {}
    for group in study.groups.values():
        if report := next((report for report in group.reports.values() if "spectrum" in report), None):
            matrices = tuple(matrix["module"] for matrix in report["spectrum"])
            found.setdefault((report["fingerprint"], matrices), (group, report))
    bases = {group.name: report["base_model"] for group, report in found.values()}
    more = apart([group for group, _ in found.values()], lambda group: bases[group.name])
    return [(group, bases[group.name] + more[group.name], report) for group, report in found.values()]


def _figures(study: Study, title: str, draw: Draw, note: str) -> list[Table | Figure]:
    found = _spectra(study)
    if not found:
        return [nothing(study, title)]
    figures: list[Table | Figure] = []
    for group, base, report in found:
        whole = f"{title}: {base}"
        file = study.name if len(found) == 1 else f"{study.name}_{group.name}"
        figures.append(Figure(file, whole, partial(draw, report["spectrum"], whole), [note]))
    return figures
