"""Few-shot adaptation: search the mixing weights that answer a few rows of the target task best (paper, section 3.2).

    score of a member = share of right answers on the shots; ties by the mean log-likelihood of the right answers

Departures from the reference code: a generation is scored in one batch with one z per row (in the factored form where
that is exact to fp32 rounding: a score here chooses, it is not reported); ties are broken by the
likelihood of the given right answers, which exist for every member, not of the member's own right samples; the budget
is a limit on members, generations or minutes, whichever comes first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transformer2.adaptation.mixture import Mixture
from transformer2.adaptation.scoring import Scorer
from transformer2.adaptation.search import Search
from transformer2.errors import ConfigError
from transformer2.svf.modes import factored_for_choice
from transformer2.tasks import Task
from transformer2.types import PromptBatch
from transformer2.verifiers import verify_all

__all__ = ["Budget", "Scores", "run_search", "score_members"]

# Scores and tie-breaks of N members, from weights (L, N, K + 1).
Scores = Callable[[Tensor], tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Budget:
    """When a search ends; None is no limit, but one of the first two must be set.

    Attributes:
        generations: Generations.
        evaluations: Members tried.
        minutes: Wall-clock minutes, looked at between generations: a result then depends on the machine.
    """

    generations: int | None = 6
    evaluations: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Refuse a search without an end."""
        if self.generations is None and self.evaluations is None:
            raise ConfigError("a search needs an end; set generations or max_evaluations")
        for name, value in (("generations", self.generations), ("evaluations", self.evaluations)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    def total(self, population: int) -> int:
        """Generations that it allows at most."""
        by_evaluations = math.inf if self.evaluations is None else max(1, self.evaluations // population)
        return int(min(by_evaluations, math.inf if self.generations is None else self.generations))


def run_search(search: Search, mixture: Mixture, scores: Scores, budget: Budget) -> Iterator[Mapping[str, Any]]:
    """Generation by generation until the budget is spent; between two of them everything is in `search`.

    Yields:
        After each generation: `mean` and `std` before it (what was tried), and after it `score` and `best`, the best
        score and member so far, and `answer`, the mean that the search would end with.
    """
    start = time.monotonic()
    while search.generation < budget.total(search.population):
        if budget.minutes is not None and search.generation and time.monotonic() - start > 60 * budget.minutes:
            return
        tried = {"mean": search.mean.tolist(), "std": search.std.tolist()}
        search.tell(*_finite_only(mixture.weights(search.ask()), scores))
        best = None if search.best is None else search.best.tolist()
        yield {**tried, "score": search.best_score, "best": best, "answer": search.mean.tolist()}


def _finite_only(weights_LNK: Tensor, scores: Scores) -> tuple[list[float], list[float]]:
    """Members whose weights are not finite get a NaN score, and no forward pass."""
    finite_N = torch.isfinite(weights_LNK).all(-1).all(0)
    found = [math.nan] * len(finite_N)
    ties = list(found)
    rows = finite_N.nonzero()[:, 0].tolist()
    if rows:
        for row, score, tie in zip(rows, *scores(weights_LNK[:, rows]), strict=True):
            found[row], ties[row] = score, tie
    return found, ties


def score_members(
    scorer: Scorer,
    shots: PromptBatch,
    task: Task,
    max_new_tokens: int,
    weights_LNK: Tensor,
) -> tuple[list[float], list[float]]:
    """Share of right answers and mean log-likelihood of the right ones, for each of N mixtures.

    Args:
        scorer: Runs mixtures.
        shots: The few-shot rows.
        task: Judges the answers; those it could not judge are left out.
        max_new_tokens: Completion budget.
        weights_LNK: (L, N, K + 1), or (N, K + 1).
    """
    with factored_for_choice(scorer.policy):
        answers = scorer.answers(shots, weights_LNK, max_new_tokens)
        ties = scorer.mean_log_likelihood(shots, weights_LNK).tolist()
    shares = []
    for rollouts in answers:
        judged = [v for v in verify_all(task, rollouts.examples, rollouts.completions) if v.reward is not None]
        shares.append(sum(v.correct for v in judged) / len(judged) if judged else math.nan)
    return shares, ties
