"""Few-shot adaptation to anybody's rows (paper, section 3.2 C): adaptation/few_shot.py without a task's splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from transformer2 import tasks
from transformer2.adaptation.few_shot import FewShotSearch, run_search
from transformer2.adaptation.members import matrices
from transformer2.adaptation.mixture import Mixture
from transformer2.adaptation.scoring import Scorer, score_members
from transformer2.adaptation.search import make_search
from transformer2.adaptive.chat import as_pictures
from transformer2.adaptive.experts import LoadedExperts
from transformer2.data.prompts import collate, render
from transformer2.errors import UserError
from transformer2.policy import lm_head
from transformer2.rollout.hf import HFEngine
from transformer2.types import Example

__all__ = ["find_mixture"]


def find_mixture(
    loaded: LoadedExperts, engine: HFEngine, rows: Sequence[Example | Mapping[str, Any]], task: Any, **search: Any
) -> Tensor:
    """Weights (L, K + 1) under which the model answers `rows` best.

    Args:
        loaded: The experts.
        engine: Draws the answers.
        rows: Examples, or mappings with `question`, `answer` and, where there are pictures, `image`.
        task: What verifies answers: a task, or its name.
        search: The arguments of `FewShotSearch`.

    Raises:
        UserError: No rows, no experts, or a row without question and answer.
    """
    verifier = tasks.get(task) if isinstance(task, str) else task
    examples = [row if isinstance(row, Example) else _example(row, i) for i, row in enumerate(rows)]
    if not examples or not loaded.experts:
        raise UserError("a mixture is searched with at least one row and one expert")
    settings, policy = FewShotSearch(controls=False, **search), loaded.policy
    mixture = Mixture(matrices(policy), list(loaded.experts), **settings.mixture_options)
    scorer = Scorer(policy, loaded.adapters, engine, lm_head(policy), engine.max_rows)
    ids = [render(engine.tokenizer, example) for example in examples]
    shots = collate(examples, ids, engine.pad_id).to(policy.device)
    mean = 1 / len(mixture.members)
    found = make_search(settings.search, mixture.dim, mean=mean, seed=settings.seed, **settings.search_options)

    def scores(weights_LNK: Tensor) -> tuple[list[float], list[float]]:
        return score_members(scorer, shots, verifier, verifier.max_new_tokens, weights_LNK)

    generations = run_search(found, mixture, scores, settings.budget)
    for entry in tqdm(generations, "adapt", settings.budget.total(found.population), unit="generation"):
        answer = entry["best"] if settings.answer == "best" and entry["best"] else entry["answer"]
    return mixture.weights(torch.tensor([answer]))[:, 0]


def _example(row: Mapping[str, Any], number: int) -> Example:
    try:
        messages, images = ({"role": "user", "content": row["question"]},), as_pictures(row.get("image"))
        return Example(f"row {number + 1}", messages, row["answer"], images=images)
    except (TypeError, KeyError, AttributeError) as e:
        raise UserError(f"row {number + 1} to adapt with has no question and answer; give both") from e
