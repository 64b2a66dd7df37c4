"""The learning curve of a run, from its TensorBoard events: training reward, validation accuracy, KL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer2.errors import DataError

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


def draw_curve(run: Path, out: Path) -> Path:
    """Draw training and validation accuracy, the test scores and the KL; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    scalars = read_scalars(run)
    percent = FuncFormatter(lambda share, _: f"{100 * share:.0f} %")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(2, 1), layout="constrained")
    if scalars["train/accuracy"]:  # nothing is sampled to learn the next token
        _plot(left, scalars["train/accuracy"], color="0.75", linewidth=1, label="training rollouts (sampled)")
    steps, accuracies = _columns(scalars["val/accuracy"])
    errors = [se for _, se in scalars["val/accuracy_se"]]
    if steps:
        left.errorbar(
            steps, accuracies, errors, color="C0", marker="o", markersize=3, capsize=2, label="validation (greedy)"
        )
    report = run / "report.json"
    if report.exists():
        _test_lines(left, json.loads(report.read_text()))
    left.set(xlabel="optimizer steps done", ylabel="right answers", ylim=(0, 1), title=run.name)
    left.yaxis.set_major_formatter(percent)
    left.legend(loc="lower right", fontsize=8)
    _plot(right, _changes(scalars["train/kl"]), color="C3", marker=".")
    right.set(xlabel="optimizer steps done", ylabel="nats per token", title="KL of the expert to the base")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)
    return out


def _test_lines(axes, report: Mapping[str, Any]) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes
    for key, colour in (("base", "C1"), ("result", "C2")):
        if not report[key]["n"]:
            continue
        accuracy, se = report[key]["accuracy"], report[key]["se"]
        name = "base" if key == "base" else "expert"
        axes.axhline(
            accuracy, color=colour, linestyle="--", label=f"{name} on test: {100 * accuracy:.1f} ± {100 * se:.1f} %"
        )
        axes.axhspan(accuracy - se, accuracy + se, color=colour, alpha=0.12)


def _plot(axes, series: Series, **style) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes and styles
    axes.plot(*_columns(series), **style)


def _changes(series: Series) -> Series:
    """Without repeats: between measurements a logger repeats the last value."""
    return [point for i, point in enumerate(series) if i == 0 or point[1] != series[i - 1][1]]


def _columns(series: Series) -> tuple[list[int], list[float]]:
    return [step for step, _ in series], [value for _, value in series]
