"""From records to a report: the one place where `fit`, `test`, `adapt` and the evaluators inside `fit` make theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformer2.metrics import Confusion, mean_pass_at_k
from transformer2.report.blind import against_blind
from transformer2.report.notes import details as notes_on
from transformer2.report.paired import PERMUTATION, both_scored, is_soft, paired_p
from transformer2.report.table import versions
from transformer2.tasks import Task
from transformer2.types import Record, Report, Score
from transformer2.verifiers import isolation

__all__ = ["Facts", "build_report", "label_confusion"]

PASS_AT = (1, 5, 10, 100)  # the k of pass@k in the literature; those that the samples allow


@dataclass(frozen=True)
class Facts:
    """What a report says besides the scores of its records; see `Report` for the fields."""

    alpha: Mapping[str, Any] | None = None
    evaluations: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def build_report(
    records: Sequence[Record],
    task: Task,
    protocol: str,
    seconds: Mapping[str, float],
    seeds: tuple[int, ...],
    name: str = "expert",
    facts: Facts | None = None,
) -> Report:
    """The report of an evaluation.

    Args:
        records: All scored questions, of all ranks.
        task: Whose they are.
        protocol: `clean` or `paper`.
        seconds: Wall-clock seconds by part.
        seeds: Every seed used.
        name: What notes call the result.
        facts: What else there is to say.
    """
    facts = facts or Facts()
    base, result = both_scored((r.base.credit for r in records), (r.result.credit for r in records))
    names = dict.fromkeys(control for r in records for control in r.controls)
    controls = {control: [c for r in records if (c := r.controls.get(control)) is not None] for control in names}
    test = {"paired_test": PERMUTATION} if is_soft([*base, *result]) else {}
    blind, unseen = against_blind(records, name)
    details = {**notes_on(records, name), **_pass_at_k(records), **test, **blind, **facts.details}
    if notes := [*facts.notes, *unseen, *details.get("notes", ())]:
        details["notes"] = notes
    return Report(
        task=task.name,
        protocol=protocol,
        n=len(base),
        base=Score.of(base),
        result=Score.of(result),
        paired_p=paired_p(base, result),
        controls={control: Score.of(credits) for control, credits in controls.items()},
        alpha=facts.alpha,
        evaluations=facts.evaluations,
        seconds={part: round(value, 2) for part, value in seconds.items()},
        seeds=seeds,
        versions=versions(),
        sandbox=isolation(task),
        details=details,
    )


def label_confusion(records: Sequence[Record], task: Task) -> dict[str, Any]:
    """Details of a task whose answers are labels: what was predicted for each; {} for other tasks."""
    if not (labels := getattr(task, "labels", ())):
        return {}
    confusion = Confusion(labels, sync_on_compute=False)  # every rank has all records
    confusion.update((r.gold, r.result.verdict.extracted) for r in records if r.result.correct is not None)
    return {"dispatch": confusion.scores(), "confusion": confusion.table()}


def _pass_at_k(records: Sequence[Record]) -> dict[str, Any]:
    """Over the questions with verdicts on k samples or more, where samples were drawn."""
    drawn = {
        "base": [r.base.samples for r in records if r.base.samples is not None],
        "result": [r.result.samples for r in records if r.result.samples is not None],
    }
    if not any(drawn.values()):
        return {}
    scores: dict[str, dict[str, Any]] = {who: {} for who in drawn}
    for who, samples in drawn.items():
        for k in PASS_AT:
            if judged := [(right, n) for right, n in samples if n >= k]:
                scores[who][str(k)] = mean_pass_at_k(judged, k)
    return {"pass_at_k": scores}
