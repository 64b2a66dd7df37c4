"""What to know before believing the scores of an evaluation, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from transformer2.report.paired import both_scored
from transformer2.types import Answer, Record

__all__ = ["CUT_REMEDY", "MOST", "details", "most_common", "on_answers"]

MOST = 0.5  # share of the answers
CUT_REMEDY = "raise model.sampling.max_new_tokens, or name what ends an answer with model.sampling.stop"


def details(records: Sequence[Record], name: str = "expert") -> dict[str, Any]:
    """The fields of a report's `details` that tell what the scores do not.

    Args:
        records: Of all scored questions.
        name: What the notes call the result.

    Returns:
        `unfinished`: shares of answers of base and result that were cut off. Where there are any: `abstained` and
        `infra_errors`, their numbers, and `notes`, one line for each reason why the scores say little.
    """
    base, result = [r.base for r in records], [r.result for r in records]
    sides = {"base": base, "result": result}
    unfinished = {who: sum(not a.finished for a in side) / max(1, len(side)) for who, side in sides.items()}
    abstained = {who: sum(a.verdict.abstained for a in side) for who, side in sides.items()}
    failed = {who: sum(a.correct is None for a in side) - abstained[who] for who, side in sides.items()}
    lines = []
    for what, counts in (("the task abstains", abstained), ("the verifier failed", failed)):
        if any(counts.values()):
            mine = [a for a in result if a.correct is None and a.verdict.abstained == (counts is abstained)]
            reasons = most_common(a.verdict.reason for a in mine)
            numbers = f"base {counts['base']}, {name} {counts['result']} of {len(records)} answers"
            lines.append(f"not scored, since {what}: {numbers}{f' ({reasons})' if reasons else ''}")
    lines += [*on_answers(base, "base", read=False), *on_answers(result, name), *_on_verdicts(records, name)]
    found = {key: value for key, value in (("abstained", abstained), ("infra_errors", failed)) if any(value.values())}
    return {"unfinished": unfinished, **found, **({"notes": lines} if lines else {})}


def on_answers(answers: Sequence[Answer], who: str, read: bool = True) -> list[str]:
    """Lines on one side's answers: cut off, empty, all the same, or (where asked) none that the verifier can read."""
    n, texts = len(answers), [a.completion for a in answers]
    cut, empty = sum(not a.finished for a in answers), sum(not text.strip() for text in texts)
    lines = []
    if n and cut >= MOST * n:
        lines.append(f"{who}: {cut} of {n} answers were cut off; {CUT_REMEDY}")
    if n and empty >= MOST * n:
        lines.append(f"{who}: {empty} of {n} answers are empty; does the model end its turn at once?")
    if n > 1 and empty < n and len(set(texts)) == 1:
        lines.append(f"{who}: the same answer to all {n} questions, {texts[0][:40]!r}")
    scored = [a.verdict for a in answers if a.correct is not None] if read else []
    if scored and all(v.extracted is None and not v.correct for v in scored):
        said = most_common(v.reason for v in scored)
        lines.append(f"{who}: the verifier found an answer in none of {len(scored)} completions ({said})")
    return lines


def _on_verdicts(records: Sequence[Record], name: str) -> list[str]:
    """Lines on verdicts that are all right, all wrong, or the same for base and result."""
    lines = []
    base, result = both_scored((r.base.credit for r in records), (r.result.credit for r in records))
    right = sum(base) + sum(result)
    if not base:
        lines.append("no question was scored for both base and result")
    elif right == 0:
        said = most_common(r.result.verdict.reason for r in records if r.result.correct is not None)
        lines.append(f"no answer is right: nothing can be told of what was learnt ({said}); see records.jsonl")
    elif right == 2 * len(base):
        lines.append("every answer is right: the task is too easy to tell what was learnt")
    if records and all(r.base.completion == r.result.completion for r in records):
        lines.append(f"{name} answers exactly as the base, word for word")
    elif base and base == result:
        lines.append(f"{name} has the verdict of the base on every question")
    return lines


def most_common(reasons: Iterable[str]) -> str:
    """The most common reasons of verdicts with their numbers, as one line."""
    return ", ".join(f"{reason!r} {number}" for reason, number in Counter(reasons).most_common(3))
