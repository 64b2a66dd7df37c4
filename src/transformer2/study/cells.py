"""What the cells of tables say about runs: means over seeds, tests, numbers trained, and where each run is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from transformer2.errors import ConfigError, shown
from transformer2.report.table import MCNEMAR
from transformer2.study.output import Table
from transformer2.study.results import Group, Run, Study
from transformer2.study.statistics import CONFIDENCE, Estimate, difference, estimate

T = TypeVar("T")
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
FIT_COLUMNS = (*SCORE_COLUMNS, "trainable", "training, CPU-s")
NOTES = (
    "accuracy: mean ± standard error over seeds; of one seed, and of the base, that of its questions",
    f"on base: difference to the base on the same questions, with a {100 * CONFIDENCE:.0f} % t interval over seeds",
    "p: two-sided, paired t over seeds; of one seed, the paired test of its report (named)",
)


def display(name: str) -> str:
    """A method or strategy as tables call it."""
    return NAMES.get(name, name)


def expert_names(study: Study, names: Iterable[str]) -> dict[str, str]:
    """Experts that a report names by their run folders (others for each seed), by their skills or their runs."""
    runs = {Path(run.folder).name: run.name for run in study.runs}
    groups = {name: study.groups[runs[name]] if name in runs else None for name in names}
    known = [group for group in groups.values() if group is not None]
    more = apart(known, skill_or_name)
    return {name: name if g is None else skill_or_name(g) + more[g.name] for name, g in groups.items()}


def skill_or_name(group: Group) -> str:
    """Whose expert it is: the label `skill`, or the run's name."""
    return group.labels.get("skill", group.name)


def number(group: Group, label: str, high: float = math.inf) -> float:
    """A run's label that says a number above 0.

    Raises:
        ConfigError: It says none.
    """
    text = group.labels[label]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= high and math.isfinite(value)):
        limit = f" and at most {high:g}" if math.isfinite(high) else ""
        raise ConfigError(
            f"runs.{group.stem}.matrix: {label} must be a number above 0{limit}, not {shown(repr(text), 60)}"
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


def score_cells(runs: Sequence[Run], reports: Mapping[int, Report]) -> list[str]:
    """The cells of `SCORE_COLUMNS`.

    Args:
        runs: Where the scores are from, the missing and the failed among them.
        reports: Of each seed that is done: at least `result`, and `base` on the same questions.
    """
    scores, base = ({seed: report[side] for seed, report in reports.items()} for side in ("result", "base"))
    found = estimate(scores.values())
    if found is None:
        why = "not scored" if scores else absent(runs)
        return [why, "–", "–", "–", seeds_cell(runs)]
    gain = difference(points(scores), points(base))
    p = "–"
    if gain is not None and gain.seeds == 1:
        report = reports[next(iter(points(scores)))]
        if (own := report.get("paired_p")) is not None:
            p = f"{own:.2g} ({report.get('details', {}).get('paired_test', MCNEMAR)})"
    elif gain is not None and gain.p is not None:
        p = f"{gain.p:.2g}"
    return [str(found), "–" if gain is None else str(gain), p, str(found.n), seeds_cell(runs)]


def suffixes(groups: Sequence[Group]) -> list[str]:
    """What tells runs apart that have one name in a table: `, lr 0.1`, or `, run svf`; of a run alone, nothing."""
    stems = {group.stem for group in groups}
    labels = dict.fromkeys(label for group in groups for label in group.labels)
    several = [label for label in labels if len({group.labels.get(label) for group in groups}) > 1]

    def parts(group: Group) -> list[str]:
        own = [f"{label} {group.labels[label]}" for label in several if label in group.labels]
        return [f"run {group.stem}", *own] if len(stems) > 1 else own

    return ["".join(f", {part}" for part in parts(group)) for group in groups]


def apart(groups: Iterable[Group], name: Callable[[Group], Hashable]) -> dict[str, str]:
    """Group -> what its row has to say besides its name, so that no other run has the same (`suffixes`)."""
    named: dict[Hashable, list[Group]] = {}
    for group in groups:
        named.setdefault(name(group), []).append(group)
    return {g.name: more for of in named.values() for g, more in zip(of, suffixes(of), strict=True)}


def alike(readings: Iterable[tuple[Group, Mapping[int, T]]]) -> list[tuple[str, list[Group], dict[int, T]]]:
    """Runs that read the same under every seed that they share, as one; with what tells them from the others.

    Args:
        readings: Runs, and what each says by seed.
    """
    found: list[tuple[list[Group], dict[int, T]]] = []
    for group, reading in readings:
        for groups, known in found:
            if all(known.get(seed, value) == value for seed, value in reading.items()):
                groups.append(group)
                known |= {seed: value for seed, value in reading.items() if seed not in known}
                break
        else:
            found.append(([group], dict(reading)))
    names = suffixes([groups[0] for groups, _ in found])
    return [(more, groups, known) for more, (groups, known) in zip(names, found, strict=True)]


def base_rows(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The base on the questions of some runs, or each of the bases: its name, and the cells of `SCORE_COLUMNS`."""
    readings = [(group, {seed: _base(report) for seed, report in group.reports.items()}) for group in groups]
    return [(f"base{more}", base_cells(of)) for more, of, _ in alike(readings)]


def base_cells(groups: Sequence[Group]) -> list[str]:
    """The cells of `SCORE_COLUMNS` of the base on the questions of some runs, by the first report of each seed.

    It is not trained, so the error is that of its questions.
    """
    runs = [run for group in groups for run in group.runs]
    said: dict[int, Run] = {}
    scores = []
    for run in runs:
        if run.report is not None and run.seed not in said:
            said[run.seed] = run
            scores.append(_base(run.report))
    scored = [score for score in scores if score["n"]]
    if not scored:
        return [absent(runs), "–", "–", "–", "–"]
    mean, se, n = fmean(s["accuracy"] for s in scored), fmean(s["se"] for s in scored), min(s["n"] for s in scored)
    return [str(Estimate(100 * mean, 100 * se, n, 1)), "", "", str(n), seeds_cell([*said.values()])]


def _base(report: Report) -> Mapping[str, Any]:
    score: Mapping[str, Any] = next(iter(report.get("strategies", {"": report}).values()))["base"]
    return score


def fit_cells(group: Group) -> list[str]:
    """The cells of `FIT_COLUMNS`: CPU seconds are a mean over seeds, and do not change with other load."""
    scores = score_cells(group.runs, group.reports)
    facts = [fact for report in group.reports.values() if (fact := report.get("details", {}).get("training"))]
    if not facts:
        return [*scores, "–", "–"]
    sizes = sorted({fact["trainable"] for fact in facts})
    shown = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    spent = [fact["cpu_seconds"] for fact in facts if "cpu_seconds" in fact]
    return [*scores, shown, f"{fmean(spent):.0f}" if spent else "–"]


def trainings(reports: Mapping[int, Report]) -> dict[int, Mapping[str, Any]]:
    """Seed -> `details.training` of the runs that were validated."""
    found = {seed: report.get("details", {}).get("training", {}) for seed, report in reports.items()}
    return {seed: training for seed, training in found.items() if training.get("curve")}


def accuracies(training: Mapping[str, Any]) -> list[float]:
    """Validation accuracies in points; the first is the base's."""
    return [100 * point["accuracy"] for point in training["curve"]]


def not_drawn(study: Study, drawn: Mapping[str, Iterable[int]]) -> list[str]:
    """A note on the seeds of runs that a picture does not show; `drawn`: those that it does, by run."""
    rest = {n: [run for run in g.runs if run.seed not in drawn.get(n, ())] for n, g in study.groups.items()}
    listed = "; ".join(f"{name} ({seeds_cell(runs)})" for name, runs in rest.items() if runs)
    return [f"not drawn: {listed}"] if listed else []


def on_runs(study: Study, shown: Iterable[Group]) -> list[str]:
    """Notes on the runs of a study that a table has no row for, and on those whose scores say little."""
    names = {group.name for group in shown}
    listed = "; ".join(f"{name} ({seeds_cell(g.runs)})" for name, g in study.groups.items() if name not in names)
    cut = {
        f"{run.name} s{run.seed}": share
        for run in study.runs
        if run.report is not None and run.name in names
        if (share := run.report.get("details", {}).get("unfinished", {}).get("result", 0)) >= MANY_CUT
    }
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in cut.items())
    notes = {"also run": listed, "answers that were cut off at the token limit": shares}
    return [f"{what}: {text}" for what, text in notes.items() if text]


def nothing(study: Study, title: str) -> Table:
    """What stands in the place of a figure without a run, each of them named."""
    rows = []
    for name, group in study.groups.items():
        rows.append([name, "nothing to draw" if group.reports else absent(group.runs), seeds_cell(group.runs)])
    return Table(study.name, title, ["run", "", "seeds"], rows, ["no run has anything to draw yet"])
