"""Few-shot adaptation to a caller's own rows (paper, section 3.2 C): adaptation/few_shot.py without a task's splits."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from transformer2 import tasks
from transformer2.adaptation.few_shot import FewShotSearch, run_search
from transformer2.adaptation.scoring import Scorer, score_members
from transformer2.adaptive.chat import Chat, as_pictures
from transformer2.adaptive.experts import LoadedExperts
from transformer2.adaptive.request import BASE, Selection, plain
from transformer2.arguments import Count, expected, fits, written
from transformer2.data.pictures import check_pictures
from transformer2.data.prompts import collate, render
from transformer2.errors import DataError, LengthError, UserError, nearest, shown
from transformer2.pictures import check_names
from transformer2.policy import lm_head
from transformer2.rollout.hf import HFEngine
from transformer2.rollout.prefill import context_of
from transformer2.tasks import Task
from transformer2.types import Example
from transformer2.verifiers import verify_all

__all__ = ["Rows", "check_answers", "find_mixture"]

Rows = Iterable[Example | Mapping[str, Any]]
COLUMNS = ("question", "answer", "image", "system")  # of a mapping
# Of `Strategy` only these: what it loads and what a report compares with are no part of a search.
SEARCH = (*[name for name in inspect.signature(FewShotSearch).parameters if name != "options"], "seed", "max_rows")


def find_mixture(
    loaded: LoadedExperts,
    engine: HFEngine,
    rows: Rows,
    task: Task | str,
    max_new_tokens: int | None = None,
    **search: Any,
) -> tuple[Selection, Tensor]:
    """The mixture under which the model answers `rows` best, and its weights (L, K + 1).

    Args:
        loaded: The experts.
        engine: Draws the answers.
        rows: Examples, or mappings with `question`, `answer` and, where there are, `image` and `system`.
        task: What verifies answers: a task, or its name.
        max_new_tokens: Budget of an answer; None takes the task's.
        search: The arguments of `FewShotSearch`.

    Raises:
        UserError: No task, rows or experts; a row without question and answer, with other columns, or whose answer the
            task cannot judge.
        LengthError: A row that is, with its answer, longer than the model reads.
    """
    for name in search:
        if name not in SEARCH:
            raise UserError(
                f"adapt has no argument {name!r}; it mixes the experts that are loaded, and takes {', '.join(SEARCH)}"
            )
    if not fits(Count | None, max_new_tokens):
        raise UserError(f"max_new_tokens must be {expected(Count)}, not {written(max_new_tokens)}")
    verifier = tasks.get(task) if isinstance(task, str) else task
    if not isinstance(verifier, Task):
        raise UserError(f"{shown(repr(task), 60)} is no task; give one, or its name")
    try:
        given = [*rows]
    except TypeError as e:
        raise UserError(f"rows to adapt with are a list of mappings or examples, not {shown(repr(rows), 60)}") from e
    examples = [row if isinstance(row, Example) else _example(row, i) for i, row in enumerate(given)]
    if not examples or not loaded.experts:
        raise UserError("a mixture is searched with at least one row and one expert")
    settings = FewShotSearch(controls=False, **{name: plain(value) for name, value in search.items()})
    policy, longest = loaded.policy, context_of(loaded.policy.config)
    mixture, searched = settings.begin(policy, list(loaded.experts))
    scorer = Scorer(policy, loaded.adapters, engine, lm_head(policy), settings.max_rows or engine.max_rows)
    budget = plain(max_new_tokens) or verifier.max_new_tokens
    check_pictures(examples)
    ids = [render(engine.tokenizer, example) for example in examples]
    if budget >= longest:
        raise LengthError(
            f"an answer of task {verifier.name} may have {budget} tokens, and this model reads {longest}; give adapt a "
            "lower max_new_tokens, choose another task, or a model with a longer context"
        )
    for example, prompt in zip(examples, ids, strict=True):
        if len(prompt) + budget > longest:
            raise LengthError(
                f"{example.id} has {len(prompt)} tokens and its answer may have {budget}, more than the {longest} of "
                "this model; shorten it, leave it out, or give adapt a lower max_new_tokens"
            )
    check_answers(verifier, examples, [isinstance(row, Example) for row in given])
    shots = collate(examples, ids, engine.pad_id).to(policy.device)
    scores = partial(score_members, scorer, shots, verifier, budget)
    generations = run_search(searched, mixture, scores, settings.budget)
    *_, last = tqdm(generations, "adapt", settings.budget.total(searched.population), unit="generation")
    if not searched.best_score > 0:
        what = "no mixture answered a row right: only the likelihood of the right answers told them apart"
        warnings.warn(f"{what}; give rows that some expert can answer", stacklevel=3)
    weights_LK = mixture.weights(torch.tensor([settings.found(last)]))[:, 0]
    members = [*loaded.experts, BASE] if mixture.mix == "raw" else loaded.experts
    alpha = dict(zip(members, weights_LK.mean(0).tolist(), strict=False))
    return Selection("mix", alpha, averaged=len(mixture.groups) > 1 or None), weights_LK


def check_answers(task: Task, examples: Sequence[Example], own: Sequence[bool]) -> None:
    """Refuse rows on which every mixture would be wrong: their right answers are verified themselves.

    Args:
        task: Whose verifier runs.
        examples: The rows.
        own: Which of them came as examples; a task's own may have an answer that it does not find right (OKVQA's may).

    Raises:
        UserError: An answer that cannot be judged, or, of another row, is judged wrong.
    """
    solutions = []
    for example in examples:
        try:
            solutions.append(task.solution(example))
        except (AttributeError, LookupError, TypeError, ValueError) as e:
            raise _unjudged(task, example, f"{type(e).__name__}: {e}") from e
        if not isinstance(example.answer, str) or not (example.question.strip() or example.images):
            raise UserError(f"{example.id} to adapt with has no question and answer as text; give both")
    texts = [solution or example.answer for solution, example in zip(solutions, examples, strict=True)]
    verdicts = verify_all(task, examples, texts)
    for example, solution, verdict, is_own in zip(examples, solutions, verdicts, own, strict=True):
        wrong = solution is not None and not verdict.credit and not verdict.abstained
        if verdict.is_failure or (wrong and not is_own):
            raise _unjudged(task, example, verdict.reason)


def _unjudged(task: Task, example: Example, why: str) -> UserError:
    answer = shown(repr(example.answer), 60)
    return DataError(
        f"{example.id}: task {task.name} does not find its own answer {answer} right ({shown(why)}); correct the row, "
        f"choose another task, or give examples of the task"
    )


def _example(row: Mapping[str, Any], number: int) -> Example:
    name = f"row {number + 1}"
    try:
        check_names(row)
        if unread := [str(column) for column in row if column not in COLUMNS]:
            remedy = nearest(unread[0], COLUMNS, 0.6) or "; leave it out"
            raise UserError(f"{shown(repr(unread[0]), 40)} is not read, only {', '.join(COLUMNS)} are{remedy}")
        question, answer, images = row["question"], row["answer"], as_pictures(row.get("image"))
        if isinstance(answer, Real) and not isinstance(answer, bool):
            answer = str(answer)
        if not isinstance(answer, str) or not answer.strip():
            raise TypeError
        system = [] if row.get("system") is None else [{"role": "system", "content": row["system"]}]
        chat = Chat.of([*system, {"role": "user", "content": question}], images=images)
    except UserError as e:
        raise type(e)(f"{name} to adapt with: {e}") from e
    except (TypeError, LookupError, AttributeError) as e:
        raise UserError(f"{name} to adapt with has no question and answer as text; give both") from e
    return Example(name, chat.messages, answer, images=chat.images)
