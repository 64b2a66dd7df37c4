"""The learning curve of a run, from its TensorBoard events: training reward, validation accuracy, KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformer2.errors import DataError
from transformer2.report.figures import bare_figure, save_figure
from transformer2.report.table import read_report
from transformer2.types import Score

Series = list[tuple[int, float]]
TAGS = ("train/accuracy", "val/accuracy", "val/accuracy_se", "train/kl")


def read_scalars(run: Path, tags: Sequence[str] = TAGS) -> dict[str, Series]:
    """(step, value) pairs of each tag, over all event files of a run.

    Raises:
        DataError: The folder holds no events.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted(run.glob("events.out.tfevents*"))
    if not files:
        raise DataError(f"{run} holds no TensorBoard events; give a run folder, such as runs/tiny_math")
    found: dict[str, dict[int, float]] = {tag: {} for tag in tags}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in set(tags) & set(events.Tags()["scalars"]):
            found[tag] |= {e.step: e.value for e in events.Scalars(tag)}
    return {tag: sorted(values.items()) for tag, values in found.items()}


def last_validation(run: Path) -> str:
    """The last validation of a run without a report, such as one of `validate`, in a line."""
    scalars = read_scalars(run, ("val/accuracy", "val/accuracy_se"))
    if not scalars["val/accuracy"]:
        return f"{run.name}   no report, and no validation yet"
    (step, accuracy), (_, se) = (of[-1] for of in scalars.values())
    return f"{run.name}   no report; last validation, step {step}: {Score(accuracy, se, 1)}"


def draw_curve(run: Path, out: Path) -> Path:
    """Draw training and validation accuracy, the test scores and the KL; returns the picture's path."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    scalars = read_scalars(run)
    figure = bare_figure((10, 3.8))
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    if sampled := scalars["train/accuracy"]:  # nothing is sampled to learn the next token
        left.plot(*zip(*sampled, strict=True), color="0.75", linewidth=1, label="training rollouts (sampled)")
    if validated := scalars["val/accuracy"]:
        errors = [se for _, se in scalars["val/accuracy_se"]]
        look = {"color": "C0", "marker": "o", "markersize": 3, "capsize": 2, "label": "validation (greedy)"}
        left.errorbar(*zip(*validated, strict=True), errors, **look)
    if (run / "report.json").exists():
        report = read_report(run)
        for name, score, colour in (("base", report.base, "C1"), ("expert", report.result, "C2")):
            if score.n:
                left.axhline(score.accuracy, color=colour, linestyle="--", label=f"{name} on test: {score}")
                left.axhspan(score.accuracy - score.se, score.accuracy + score.se, color=colour, alpha=0.12)
    left.set(xlabel="optimizer steps done", ylabel="right answers", ylim=(0, 1), title=run.name)
    left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    left.legend(loc="lower right", fontsize=8)
    kl = scalars["train/kl"]
    changes = [point for i, point in enumerate(kl) if not i or point[1] != kl[i - 1][1]]  # a logger repeats values
    right.plot(*zip(*changes, strict=True), color="C3", marker=".")
    right.set(xlabel="optimizer steps done", ylabel="nats per token", title="KL of the expert to the base")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return save_figure(figure, out)
