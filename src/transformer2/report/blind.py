"""Was anything seen? What a report says where its controls answer without the picture (adaptation/blind.py)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from transformer2.report.paired import both_scored, paired_p
from transformer2.types import Record

__all__ = ["MOST_FREQUENT", "WITHOUT", "against_blind"]

WITHOUT, MOST_FREQUENT = "without the picture", "most frequent answer"
CLEAR = 0.05  # p of a difference that may be chance


def against_blind(records: Sequence[Record], name: str) -> tuple[dict[str, Any], list[str]]:
    """What the details and the notes of a report say of its blind controls; nothing where it has none.

    Args:
        records: Of all scored questions.
        name: What notes call the result.

    Returns:
        `blind`: control -> points that the result is above it, and the paired p; and a note for each that it is not
        clearly above.
    """
    details: dict[str, Any] = {}
    notes = []
    for control in (WITHOUT, MOST_FREQUENT):
        blind, result = both_scored((r.controls.get(control) for r in records), (r.result.credit for r in records))
        if not blind:
            continue
        gain, p = 100 * (fmean(result) - fmean(blind)), paired_p(blind, result)
        details[control] = {"points": round(gain, 6), "p": p}
        if gain <= 0 or p >= CLEAR:
            scores = f"{100 * fmean(result):.1f} % to {100 * fmean(blind):.1f} %, p = {p:.2g}"
            notes.append(f"{name} is not {'above' if gain <= 0 else 'clearly above'} {_WHAT[control]}: {scores}")
    if details and MOST_FREQUENT not in details:
        notes.append("no training rows could be read, so what their most frequent answers would score is not known")
    return ({"blind": details} if details else {}), notes


_WHAT = {
    WITHOUT: "what it scores without the picture",
    MOST_FREQUENT: "the most frequent training answer to the same question",
}
