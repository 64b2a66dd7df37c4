"""A policy under mixtures of experts, for as long as one evaluation lasts; and what every mixture is compared with.

Controls are the base, each expert alone, their uniform mixture, and the best constant z: a gain that one of them
reaches as well is not due to the choice of alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from transformer2.adaptation.answerer import Answerer
from transformer2.adaptation.mixture import base_row, constant_rows, expert_rows
from transformer2.adaptation.scoring import Scorer, score_members
from transformer2.experts import Expert
from transformer2.types import Answer, PromptBatch

if TYPE_CHECKING:
    from transformer2.data import UnseenTaskDataModule

__all__ = ["Baseline", "Cache", "EvaluationContext"]

CONSTANTS = (0.8, 0.9, 1.1, 1.2)


class Baseline(NamedTuple):
    """The base's answer to a question, and the credit of each control (None: the verifier did not say)."""

    base: Answer
    controls: dict[str, float | None]


@dataclass(frozen=True)
class Known:
    """What answers are compared with: controls never change, so they are answered once.

    Attributes:
        weights: Control -> weights (1, K + 1), the base first.
        baselines: Position of a scored row -> its baseline.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    baselines: dict[int, Baseline] = field(default_factory=dict)


# Task, experts and whether there are controls -> what is known, however often a `fit` evaluates and for all strategies.
Cache = MutableMapping[tuple[Any, ...], Known]


@dataclass(frozen=True)
class EvaluationContext:
    """What a strategy has to work with.

    Attributes:
        answerer: Verifies answers; says which process this is.
        data: The unseen task.
        few_shot: The rows to adapt with.
        experts: The K experts to choose from.
        made_from: SHA-256 of the weights of each expert, by name, and of each helper.
        scorer: Runs mixtures of them and the base.
        helpers: Runs mixtures of the strategy's helpers and the base.
        known: What answers are compared with.
        folder: Where a run of its own keeps its files; None inside `fit`.
        bar: A tqdm bar.
        max_batches: Score no more than the first ones.
    """

    answerer: Answerer
    data: UnseenTaskDataModule
    few_shot: PromptBatch
    experts: Sequence[Expert]
    made_from: Mapping[str, str | None]
    scorer: Scorer
    helpers: Scorer
    known: Known
    folder: Path | None
    bar: Any
    max_batches: int | None = None

    def scored_batches(self) -> Iterator[PromptBatch]:
        """The rows that the report is of."""
        for batch in islice(self.data.test_dataloader(), self.max_batches):
            yield batch.to(self.answerer.device)

    def scores(self, weights_LNK: Tensor) -> tuple[list[float], list[float]]:
        """Mean credit of answers to the few-shot rows, and mean log-likelihood of the right ones, for N mixtures.

        Each process runs every world_size-th of the mixtures, and all learn all scores.

        Raises:
            UserError: Over 5 % of the answers in all processes could not be verified.
        """
        answerer, size, n = self.answerer, self.answerer.world_size, weights_LNK.shape[-2]
        found: tuple[list[float], list[float]] = [], []
        if answerer.rank < n:
            mine, check = weights_LNK[..., answerer.rank :: size, :], answerer.stop_if_unverified
            found = score_members(self.scorer, self.few_shot, answerer.task, answerer.max_new_tokens, mine, check)
        else:
            answerer.stop_if_unverified([])
        parts = answerer.gather(list(zip(*found, strict=True)))
        credits, likelihoods = zip(*(parts[i % size][i // size] for i in range(n)), strict=True)
        return list(credits), list(likelihoods)

    def answers(self, batch: PromptBatch, weights_LBK: Tensor) -> list[Answer]:
        """Answers to a batch, row b under weights b; one row of weights serves all."""
        return self.answerer.verified(self.scorer.rows(batch, weights_LBK, self.answerer.max_new_tokens))

    def baselines(self, batch: PromptBatch) -> list[Baseline]:
        """Base and controls on the rows of a batch, all in one."""
        known, weights = self.known.baselines, self.known.weights
        if not all(row in known for row in batch.positions):
            rollouts = self.scorer.answers(batch, torch.cat(list(weights.values())), self.answerer.max_new_tokens)
            answers = dict(zip(weights, map(self.answerer.verified, rollouts), strict=True))
            base = answers.pop("base")
            for b, row in enumerate(batch.positions):
                known[row] = Baseline(base[b], {name: of[b].credit for name, of in answers.items()})
        return [known[row] for row in batch.positions]

    def choose_controls(self, more: bool) -> None:
        """The base and, where `more` is asked for, the controls; all processes choose one constant by few-shot rows."""
        k, weights = len(self.experts), self.known.weights
        weights["base"] = base_row(k)
        if more:
            singles, constants = expert_rows(k), constant_rows(k, CONSTANTS)
            weights |= {f"expert {e.name}": singles[i : i + 1] for i, e in enumerate(self.experts)}
            weights["uniform mixture"] = singles.mean(0, keepdim=True)
            shares, ties = self.scores(constants)
            best = max(range(len(CONSTANTS)), key=lambda i: (shares[i], ties[i]))
            weights[f"constant z = {CONSTANTS[best]}"] = constants[best : best + 1]
