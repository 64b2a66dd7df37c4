"""A policy under mixtures of experts, for as long as one evaluation lasts."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from transformer2.adaptation.answerer import Answerer
from transformer2.adaptation.controls import control_arms
from transformer2.adaptation.few_shot import score_members
from transformer2.adaptation.members import matrices, members
from transformer2.adaptation.scoring import Scorer
from transformer2.errors import ConfigError
from transformer2.experts import Expert
from transformer2.types import Answer, PromptBatch

if TYPE_CHECKING:
    from transformer2.data import UnseenTaskDataModule

__all__ = ["Baseline", "Cache", "Mixtures", "mixtures_of"]


class Baseline(NamedTuple):
    """What a question's answer stands beside.

    Attributes:
        base: The base model's answer.
        controls: Name of a control -> whether it was right, None where the verifier did not say.
    """

    base: Answer
    controls: dict[str, bool | None]


# Baselines never change: they are answered once, however often a `fit` evaluates, and once for several strategies.
# Task and experts -> position among the scored rows -> baseline.
Cache = MutableMapping[tuple[Any, ...], dict[int, Baseline]]


@dataclass(frozen=True)
class Mixtures:
    """What a strategy has to work with.

    Attributes:
        answerer: Judges answers; which process this is.
        data: The unseen task.
        experts: The K experts to choose from.
        scorer: Runs mixtures of them and the base.
        first_scorer: Runs the helpers and the base: whatever a strategy needs in the first pass only.
        few_shot: The rows to adapt with.
        with_controls: Whether there is more than the base to stand beside.
        judged: Baselines known by now, by position.
        folder: Where a run of its own keeps its files; None inside `fit`.
        bar: Progress: a tqdm bar.
    """

    answerer: Answerer
    data: UnseenTaskDataModule
    experts: Sequence[Expert]
    scorer: Scorer
    first_scorer: Scorer
    few_shot: PromptBatch
    with_controls: bool
    judged: dict[int, Baseline]
    folder: Path | None
    bar: Any

    @property
    def matrices(self) -> list[str]:
        """Paths of the tuned matrices, the axis L of weights."""
        return matrices(self.answerer.policy)

    def scores(self, weights_LNK: Tensor) -> tuple[list[float], list[float]]:
        """Share of right answers and mean log-likelihood of the right answers to the few-shot rows, for N mixtures."""
        task, budget = self.answerer.task, self.answerer.max_new_tokens
        return score_members(self.scorer, self.few_shot, task, budget, weights_LNK)

    def answers(self, batch: PromptBatch, weights_LBK: Tensor) -> list[Answer]:
        """Answers of a batch, row b under weights b; one row of weights serves all."""
        return self.answerer.judge(self.scorer.rows(batch, weights_LBK, self.answerer.max_new_tokens))

    def baselines(self, batch: PromptBatch) -> list[Baseline]:
        """Base and controls on the rows of a batch, all in one."""
        if not all(row in self.judged for row in batch.positions):
            arms = self._arms
            rollouts = self.scorer.answers(batch, torch.cat(list(arms.values())), self.answerer.max_new_tokens)
            base, *others = (self.answerer.judge(r) for r in rollouts)
            for b, row in enumerate(batch.positions):
                controls = zip(list(arms)[1:], others, strict=True)
                self.judged[row] = Baseline(base[b], {name: answers[b].correct for name, answers in controls})
        return [self.judged[row] for row in batch.positions]

    @cached_property
    def _arms(self) -> dict[str, Tensor]:
        return control_arms([e.name for e in self.experts], self.scores, self.with_controls)


@contextmanager
def mixtures_of(
    experts: Sequence[Expert],
    helpers: Sequence[Expert],
    answerer: Answerer,
    data: UnseenTaskDataModule,
    max_rows: int | None,
    with_controls: bool,
    cache: Cache,
    folder: Path | None,
    bar: Any,
) -> Iterator[Mixtures]:
    """Put experts into the policy; they are gone again after any exit.

    Args:
        experts: To choose from.
        helpers: For the first pass only.
        answerer: Whose policy it is.
        data: The unseen task.
        max_rows: Rows of one micro-batch; None takes the answerer's.
        with_controls: See `Mixtures`.
        cache: Baselines of earlier evaluations.
        folder: See `Mixtures`.
        bar: See `Mixtures`.

    Raises:
        ConfigError: The policy cannot mix: its weights are sharded, or its adapters are no SVF.
    """
    if answerer.engine.in_lockstep:
        raise ConfigError("experts are not chosen or mixed under ZeRO-3 yet; adapt with trainer.strategy: ddp")
    key = (data.task.name, data.protocol, data.seed, data.few_shot, *(e.sha256 for e in experts))
    with members(answerer.policy, [*experts, *helpers]) as names:
        k, rows = len(experts), max_rows or answerer.max_rows

        def scorer(adapters: list[str]) -> Scorer:
            return Scorer(answerer.policy, [*adapters, names[-1]], answerer.engine, answerer.head, rows)

        yield Mixtures(
            answerer,
            data,
            experts,
            scorer(names[:k]),
            scorer(names[k:-1]),
            data.shots().to(answerer.device),
            with_controls,
            cache.setdefault(key, {}),
            folder,
            bar,
        )
