"""One evaluation, from prompts to a report: `test`, `adapt` and the evaluators inside `fit` all go through here.

    first pass     adapt_to_task once, adapt_to_batch for every batch -> how to answer
    second pass    the scored rows answered so
    controls       the same rows answered by the base and by whatever else they are compared with; of pictures,
                   the same questions without them as well (blind.py); labelled requests, to measure a dispatch

Departure from the reference code: whatever was chosen, every rank runs the same number of forward passes, since a
batch of different choices is one batch with one z per row.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from transformer2.adaptation.answerer import Answerer
from transformer2.adaptation.blind import blind_controls
from transformer2.adaptation.context import Cache
from transformer2.adaptation.strategy import AdaptedPolicy, Strategy
from transformer2.experts import Expert
from transformer2.report.build import build_report
from transformer2.report.figures import pixels
from transformer2.types import PromptBatch, Record, Report

if TYPE_CHECKING:
    from transformer2.data import ExpertDataModule

__all__ = ["Evaluation", "evaluate", "evaluate_batch", "in_order"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, on every rank.

    Attributes:
        report: The scores.
        records: One for each scored question, in the order of the questions.
        figure: The strategy's matplotlib figure, where it has one.
        expert: What was found, as an expert like any other, where it is one.
    """

    report: Report
    records: Sequence[Record] = ()
    figure: Any = None
    expert: Expert | None = None

    def log(self, loggers: Iterable[Any], step: int, group: str, picture: str) -> None:
        """Scores, seconds and, where a logger takes it, the figure to Lightning's loggers.

        Args:
            loggers: Of the trainer.
            step: Optimizer steps so far.
            group: What the tags of the scores begin with.
            picture: Tag of the figure.
        """
        result = self.report.result
        scores = {"accuracy": result.accuracy, "accuracy_se": result.se, **self.report.seconds}
        for logger in loggers:
            logger.log_metrics({f"{group}/{name}": float(value) for name, value in scores.items()}, step=step)
            if self.figure is not None and hasattr(logger.experiment, "add_image"):  # TensorBoard's
                logger.experiment.add_image(picture, pixels(self.figure), step, dataformats="HWC")


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start


@torch.no_grad()
def evaluate(
    answerer: Answerer,
    data: ExpertDataModule,
    strategy: Strategy,
    cache: Cache | None = None,
    folder: Path | None = None,
    progress: bool = False,
    max_batches: int | None = None,
) -> Evaluation:
    """Adapt to a task, answer its scored rows, and report; the policy is afterwards what it was before.

    Args:
        answerer: The policy, and what verifies its answers.
        data: The task, with its `test` rows open.
        strategy: How answers are chosen.
        cache: Baselines of earlier evaluations, which are not answered again; those of this one are added.
        folder: Where a strategy saves what it needs to resume after an interruption.
        progress: Whether to draw a bar.
        max_batches: Score no more than the first ones.
    """
    records: list[Record] = []
    seconds = dict.fromkeys(("first_pass", "second_pass", "controls"), 0.0)
    bar = tqdm(desc=f"adapt {strategy.name}", disable=not (progress and answerer.rank == 0), unit="step")
    with bar, ExitStack() as stack:
        with _timed(seconds, "controls"):
            context = strategy.prepared(answerer, data, {} if cache is None else cache, folder, bar, max_batches)
            prepared = stack.enter_context(context)
        with _timed(seconds, "first_pass"):
            adapted = strategy.adapt_to_task(prepared)
        seconds["first_pass"] += adapted.seconds_before
        loader = data.test_dataloader()
        bar.reset(total=min(len(loader), max_batches or len(loader)))
        for index, batch in enumerate(islice(loader, max_batches)):
            records += evaluate_batch(adapted, data, batch.to(answerer.device), index, seconds)
            bar.update()
        records = in_order(answerer, records)
        with _timed(seconds, "controls"):
            facts = adapted.facts(records)
    seeds = (strategy.seed,) if data.seed == strategy.seed else (strategy.seed, data.seed)
    protocol = getattr(data, "reported", data.task.protocol)
    report = build_report(records, data.task, protocol, seconds, seeds, strategy.name, facts)
    return Evaluation(report, records, adapted.figure(records), adapted.expert())


def evaluate_batch(
    adapted: AdaptedPolicy,
    data: ExpertDataModule,
    batch: PromptBatch,
    index: int,
    seconds: dict[str, float] | None = None,
) -> list[Record]:
    """Answer and verify one batch, the `index`-th of the task, and its baselines; adds to `seconds` by part."""
    seconds = {} if seconds is None else seconds
    with _timed(seconds, "first_pass"):
        choice = adapted.adapt_to_batch(batch)
    with _timed(seconds, "controls"):
        baselines = adapted.baselines(batch, index)
    with _timed(seconds, "second_pass"):
        answers = adapted.answers(batch, choice, index)
    with _timed(seconds, "controls"):
        blind = blind_controls(adapted, data, batch, choice, answers)
    # A user's own datamodule may keep no prompts, nor know where a row stood.
    shown = data.shown_prompts(batch) if hasattr(data, "shown_prompts") else [None] * len(batch)
    positions = batch.positions or range(len(batch))
    return [
        Record(
            row=positions[b],
            id=example.id,
            question=example.question,
            gold=example.answer,
            images=example.images,
            base=baselines[b].base,
            result=answers[b],
            prompt=shown[b],
            strategy=None if choice.weights is None else adapted.name,
            choice=choice.columns[b] if choice.columns else {},
            controls={**baselines[b].controls, **blind[b]},
        )
        for b, example in enumerate(batch.examples)
    ]


def in_order(answerer: Answerer, records: Sequence[Record]) -> list[Record]:
    """The records of all ranks, in the order of the questions."""
    everyone = (record for part in answerer.gather(list(records)) for record in part)
    return sorted(everyone, key=lambda record: record.row)
