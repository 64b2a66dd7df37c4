"""What is scored without seeing: the controls of every question that has a picture.

    without the picture     the same model, under the same z, on the same question as text alone
    most frequent answer    what the training rows answer most often to the same question, else to any

An answer about a picture may be likely whatever the picture shows (easy-VQA: two in three); only what is above both was
seen. Rows without a picture count as they were answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from transformer2.adaptation.scoring import right_answer
from transformer2.data.prompts import ChatTemplate, collate, render
from transformer2.errors import DataError
from transformer2.report.blind import MOST_FREQUENT, WITHOUT
from transformer2.tasks import Task
from transformer2.types import Answer, Example, PromptBatch
from transformer2.verifiers import verify_all

if TYPE_CHECKING:
    from transformer2.adaptation.strategy import AdaptedPolicy, Choice

__all__ = ["blind_controls", "without_pictures"]

Guess = Callable[[Example], str]
_guesses: WeakKeyDictionary[Any, Guess | None] = WeakKeyDictionary()  # of each datamodule; training rows are read once


def blind_controls(
    adapted: AdaptedPolicy, data: Any, batch: PromptBatch, choice: Choice, answers: Sequence[Answer]
) -> list[dict[str, float | None]]:
    """The controls of each row of a batch, by name; none where no row of any rank has a picture.

    Args:
        adapted: What answered.
        data: The datamodule of the batch.
        batch: The rows.
        choice: The z that they were answered under.
        answers: How.
    """
    answerer = adapted.answerer
    if not answerer.total([sum(bool(e.images) for e in batch.examples)])[0]:  # all ranks must decide alike
        return [{} for _ in answers]
    examples = [without_pictures(e) for e in batch.examples]
    engine, template = answerer.engine, getattr(data, "template", ChatTemplate())
    ids = [render(engine.tokenizer, e, template) for e in examples]
    blind = collate(examples, ids, engine.pad_id, batch.row_ids, batch.positions).to(answerer.device)
    said = adapted.blind_answers(blind, choice)
    rows = zip(batch.examples, said, answers, strict=True)
    controls = [{WITHOUT: (unseen if e.images else seen).credit} for e, unseen, seen in rows]
    if (guess := _guess_of(data)) is not None:
        verdicts = verify_all(answerer.task, batch.examples, [guess(e) for e in batch.examples])
        for of, verdict in zip(controls, verdicts, strict=True):
            of[MOST_FREQUENT] = None if verdict.reward is None else verdict.credit
    return controls


def without_pictures(example: Example) -> Example:
    """The question as text alone."""
    messages = tuple(
        m
        if isinstance(m["content"], str)
        else {**m, "content": tuple(part for part in m["content"] if part["type"] != "image")}
        for m in example.messages
    )
    return replace(example, messages=messages, images=())


def _guess_of(data: Any) -> Guess | None:
    """What the training rows say most often; None where they cannot be read."""
    if data not in _guesses:
        split = next((s for s in ("train", "few_shot") if s in data.task.splits), None)
        try:
            rows = data.task.examples(split, getattr(data, "data_dir", None)) if split else []
        except DataError:
            rows = []
        _guesses[data] = _most_frequent(data.task, rows) if rows else None
    return _guesses[data]


def _most_frequent(task: Task, rows: Sequence[Example]) -> Guess:
    written: dict[str, str] = {}  # however it is spelt, as it was first
    overall: Counter[str] = Counter()
    by_question: dict[str, Counter[str]] = {}
    for e in rows:
        answer = right_answer(task, e)
        same = _folded(answer)
        written.setdefault(same, answer)
        overall[same] += 1
        by_question.setdefault(_folded(e.question), Counter())[same] += 1
    return lambda e: written[by_question.get(_folded(e.question), overall).most_common(1)[0][0]]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
