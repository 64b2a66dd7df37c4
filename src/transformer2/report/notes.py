"""Scores from records, and what to know before believing them.

A record is one question of a test: `base_completion`, `base_correct`, `base_finished` of the base; `completion`,
`correct`, `finished`, `extracted`, `reason` of the expert or of what a strategy chose. `correct` is None where there is
no verdict: such a question is not scored. `abstained` (or `base_abstained`) is there where that is the task's choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformer2.report.statistics import mcnemar_p
from transformer2.types import Score, Verdict

__all__ = ["CUT_REMEDY", "MOST", "answered", "details", "most_common", "on_answers", "scores"]

Records = Sequence[Mapping[str, Any]]
MOST = 0.5  # share of the answers
CUT_REMEDY = "raise model.max_new_tokens, or name what ends an answer with model.stop"


def answered(completion: str, finished: Any, verdict: Verdict, prefix: str = "") -> dict[str, Any]:
    """What a record keeps of one answer; with a prefix, of the base's."""
    kept = {"completion": completion, "correct": None if verdict.reward is None else verdict.correct}
    kept |= {"finished": bool(finished), **({"abstained": True} if verdict.abstained else {})}
    kept |= {} if prefix else {"extracted": verdict.extracted, "reason": verdict.reason}
    return {prefix + name: value for name, value in kept.items()}


def scores(records: Records) -> dict[str, Any]:
    """`n`, `base`, `result` and `paired_p` of a report, over the questions that both have a verdict on."""
    both = [r for r in records if r["base_correct"] is not None and r["correct"] is not None]
    base, result = ([bool(r[key]) for r in both] for key in ("base_correct", "correct"))
    p = mcnemar_p(base, result)
    return {"n": len(both), "base": Score.of(base), "result": Score.of(result), "paired_p": p}


def details(records: Records, name: str = "expert") -> dict[str, Any]:
    """The fields of a report's `details` that tell what the scores do not.

    Args:
        records: See the module docstring.
        name: What the notes call the result.

    Returns:
        `unfinished`: shares of answers of base and result that were cut off. Where there are any: `abstained` and
        `infra_errors`, their numbers, and `notes`, one line for each reason why the scores say little.
    """
    sides = {"base": "base_", "result": ""}
    total = max(1, len(records))
    unfinished = {who: sum(not r[p + "finished"] for r in records) / total for who, p in sides.items()}
    abstained = {who: sum(r.get(p + "abstained", False) for r in records) for who, p in sides.items()}
    unscored = {who: sum(r[p + "correct"] is None for r in records) for who, p in sides.items()}
    failed = {who: unscored[who] - abstained[who] for who in sides}
    lines = []
    for what, counts in (("the task abstains", abstained), ("the verifier failed", failed)):
        if any(counts.values()):
            mine = [r for r in records if r["correct"] is None and r.get("abstained", False) == (counts is abstained)]
            reasons = most_common(r["reason"] for r in mine)
            numbers = f"base {counts['base']}, {name} {counts['result']} of {len(records)} answers"
            lines.append(f"not scored, since {what}: {numbers}{f' ({reasons})' if reasons else ''}")
    lines += [*on_answers(records, "base", "base_"), *on_answers(records, name), *_on_verdicts(records, name)]
    found: dict[str, Any] = {"unfinished": unfinished, "abstained": abstained, "infra_errors": failed}
    found = {key: value for key, value in found.items() if key == "unfinished" or any(value.values())}
    return {**found, **({"notes": lines} if lines else {})}


def on_answers(records: Records, who: str, prefix: str = "") -> list[str]:
    """Lines on one side's answers: cut off, empty, all the same, or none that the verifier can read."""
    n = len(records)
    texts = [r[prefix + "completion"] for r in records]
    cut, empty = sum(not r[prefix + "finished"] for r in records), sum(not text.strip() for text in texts)
    lines = []
    if n and cut >= MOST * n:
        lines.append(f"{who}: {cut} of {n} answers were cut off; {CUT_REMEDY}")
    if n and empty >= MOST * n:
        lines.append(f"{who}: {empty} of {n} answers are empty; does the model end its turn at once?")
    if n > 1 and empty < n and len(set(texts)) == 1:
        lines.append(f"{who}: the same answer to all {n} questions, {texts[0][:40]!r}")
    scored = [] if prefix else [r for r in records if r["correct"] is not None]
    if scored and all(r["extracted"] is None and not r["correct"] for r in scored):
        said = most_common(r["reason"] for r in scored)
        lines.append(f"{who}: the verifier found an answer in none of {len(scored)} completions ({said})")
    return lines


def _on_verdicts(records: Records, name: str) -> list[str]:
    """Lines on verdicts that are all right, all wrong, or the same for base and result."""
    lines = []
    pairs = [(r["base_correct"], r["correct"]) for r in records if None not in (r["base_correct"], r["correct"])]
    right = sum(map(sum, pairs))
    if not pairs:
        lines.append("no question was scored for both base and result")
    elif right == 0:
        said = most_common(r["reason"] for r in records if r["correct"] is not None)
        lines.append(f"no answer is right: nothing can be told of what was learnt ({said}); see records.jsonl")
    elif right == 2 * len(pairs):
        lines.append("every answer is right: the task is too easy to tell what was learnt")
    if records and all(r["base_completion"] == r["completion"] for r in records):
        lines.append(f"{name} answers exactly as the base, word for word")
    elif pairs and all(base == result for base, result in pairs):
        lines.append(f"{name} has the verdict of the base on every question")
    return lines


def most_common(reasons: Iterable[str], count: int = 3) -> str:
    """The most common reasons of verdicts with their numbers, as one line."""
    return ", ".join(f"{reason!r} {number}" for reason, number in Counter(reasons).most_common(count))
