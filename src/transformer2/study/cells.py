"""What cells of tables say of runs: means over seeds, tests, prices, and where each run is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformer2.errors import ConfigError, shown
from transformer2.study.results import Run, Study
from transformer2.study.statistics import CONFIDENCE, difference, estimate

Report = Mapping[str, Any]
Scores = Mapping[int, Mapping[str, Any]]  # seed -> accuracy, se, n

NAMES = {
    "svf": "SVF",
    "svf_adamw": "SVF, AdamW",
    "lora": "LoRA",
    "ia3": "IA3",
    "dora": "DoRA",
    "tinylora": "TinyLoRA",
    "ia3_100": "IA3, 100 steps",
    "ia3_1000": "IA3, 1000 steps",
    "cem": "few-shot (cem)",
    "soft": "scores, soft",
}
MANY_CUT = 0.1  # share of the answers
SCORE_COLUMNS = ("accuracy, %", "on base, points [95 %]", "p", "n", "seeds")
NOTES = (
    "accuracy: mean ± standard error over seeds; of one seed, and of the base, that of its questions",
    f"on base: difference to the base on the same questions, with a {100 * CONFIDENCE:.0f} % t interval over seeds",
    "p: two-sided, paired t over seeds; of one seed, the paired test of its report (named)",
)


def display(name: str) -> str:
    """A method or strategy as tables call it."""
    return NAMES.get(name, name)


def stem(study: Study, name: str) -> str:
    """A run's name in the study file: without the values of its matrix, which end it."""
    return name.removesuffix("".join(f"-{value}" for value in study.labels(name).values()))


def expert_name(study: Study, name: str) -> str:
    """An expert that a report names, as tables call it: by its skill, or its run.

    Its own name is that of its run folder, which another seed has another of.
    """
    runs = {Path(run.folder).name: run for run in study.runs}
    return runs[name].labels.get("skill", runs[name].name) if name in runs else name


def runs_of(study: Study, name: str) -> list[Run]:
    """The runs of a name, one a seed."""
    return [run for run in study.runs if run.name == name]


def scored(study: Study) -> list[str]:
    """Names of runs with one result each, or without a report: neither `adapt` of all strategies nor `spectrum`."""
    return [name for name in study.names if all("result" in report for report in study.reports(name).values())]


def number(study: Study, name: str, label: str, high: float = math.inf) -> float:
    """A run's label that says a number above 0.

    Raises:
        ConfigError: It says none.
    """
    text = study.labels(name)[label]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= high and math.isfinite(value)):
        limit = f" and at most {high:g}" if math.isfinite(high) else ""
        raise ConfigError(
            f"runs.{stem(study, name)}.matrix: {label} must be a number above 0{limit}, not {shown(repr(text), 60)}"
        )
    return value


def seeds_cell(runs: Sequence[Run]) -> str:
    """The seeds of runs with their folders, and which of them are not there: `0, 1, 2 failed, 3 not run`."""
    words = {"done": "", "failed": " failed", "missing": " not run"}
    named = [(f"{run.seed}{words[run.state]}", run.folder) for run in runs]
    return ", ".join(f"[{text}]({folder})" if folder else text for text, folder in named) or "–"


def absent(runs: Sequence[Run]) -> str:
    """What a cell says where no run of it is done."""
    return "failed" if any(run.state == "failed" for run in runs) else "not run"


def points(scores: Scores) -> dict[int, float]:
    """Seed -> accuracy in points, where anything was scored."""
    return {seed: 100 * score["accuracy"] for seed, score in scores.items() if score["n"]}


def score_cells(runs: Sequence[Run], scores: Scores, base: Scores, tests: Mapping[int, str] | None = None) -> list[str]:
    """The cells of `SCORE_COLUMNS`.

    Args:
        runs: Where the scores are from, the missing and the failed among them.
        scores: Of each seed that is done.
        base: Of the base, on the same questions.
        tests: Seed -> `p (test)` of its report, for where there is one seed.
    """
    found = estimate(scores.values())
    if found is None:
        why = "not scored" if scores else absent(runs)
        return [why, "–", "–", "–", seeds_cell(runs)]
    gain = difference(points(scores), points(base))
    p = "–"
    if gain is not None and gain.seeds == 1:
        p = (tests or {}).get(next(iter(points(scores))), "–")
    elif gain is not None and gain.p is not None:
        p = f"{gain.p:.2g}"
    return [str(found), "–" if gain is None else str(gain), p, str(found.n), seeds_cell(runs)]


def base_of(study: Study, names: Sequence[str]) -> tuple[Scores, list[Run]]:
    """The base on the questions of some runs, by seed, and the runs that say so; all of them where none does."""
    found: dict[int, Mapping[str, Any]] = {}
    said = []
    runs = [run for name in names for run in runs_of(study, name)]
    for run in runs:
        if run.report is not None and run.seed not in found:
            report = next(iter(run.report["strategies"].values())) if "strategies" in run.report else run.report
            found[run.seed] = report["base"]
            said.append(run)
    return found, said or runs


def base_cells(base: Scores, runs: Sequence[Run]) -> list[str]:
    """The cells of `SCORE_COLUMNS` of the base itself: no training, so the error is that of its questions."""
    scored = [score for score in base.values() if score["n"]]
    if not scored:
        return [absent(runs), "–", "–", "–", "–"]
    mean, se = fmean(s["accuracy"] for s in scored), fmean(s["se"] for s in scored)
    return [
        f"{100 * mean:.1f} ± {100 * se:.1f} (of questions)",
        "",
        "",
        str(min(s["n"] for s in scored)),
        seeds_cell(runs),
    ]


def report_test(report: Report) -> str:
    """p of a report's own paired test, and which test it is."""
    p = report.get("paired_p")
    return "–" if p is None else f"{p:.2g} ({report.get('details', {}).get('paired_test', 'exact McNemar')})"


def training(reports: Iterable[Report]) -> list[str]:
    """Cells: trainable parameters, steps, seconds of training (mean over seeds)."""
    facts = [report["details"]["training"] for report in reports if "training" in report.get("details", {})]
    if not facts:
        return ["–", "–"]
    sizes = sorted({fact["trainable"] for fact in facts})
    shown = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return [shown, f"{fmean(fact['seconds'] for fact in facts):.0f}"]


def on_runs(study: Study, shown: Iterable[str]) -> list[str]:
    """Notes on the runs of a study that a table has no row for, and on those whose scores say little."""
    others = [name for name in study.names if name not in set(shown)]
    listed = "; ".join(f"{name} ({seeds_cell(runs_of(study, name))})" for name in others)
    cut = {
        f"{run.name} s{run.seed}": share
        for run in study.runs
        if run.report is not None and run.name not in others
        if (share := run.report.get("details", {}).get("unfinished", {}).get("result", 0)) >= MANY_CUT
    }
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in cut.items())
    notes = {"also run": listed, "answers that were cut off at the token limit": shares}
    return [f"{what}: {text}" for what, text in notes.items() if text]
