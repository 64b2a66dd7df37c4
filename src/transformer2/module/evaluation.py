"""Validation and test of a policy under Lightning's verbs; how a question is answered is adaptation/answerer.py's."""

from __future__ import annotations

from itertools import islice
from typing import Any

import lightning as L
from torch import Tensor

from transformer2.adaptation.answerer import Answerer
from transformer2.adaptation.evaluate import evaluate_batch, in_order
from transformer2.adaptation.strategy import ActiveExpert, AdaptedPolicy
from transformer2.data.loader import batches_within
from transformer2.distributed import gather_objects, sum_over_ranks
from transformer2.metrics import Accuracy
from transformer2.module.meter import LearningCurve
from transformer2.module.options import MemoryOptions, SamplingOptions, TestOptions
from transformer2.rl.logprobs import Head
from transformer2.rollout.base import RolloutEngine
from transformer2.rollout.hf import HFEngine
from transformer2.tasks import Task
from transformer2.types import Answer, Example, PromptBatch, Record


class PolicyModule(L.LightningModule):
    """A module whose policy answers prompts; the hyper-parameters and `configure_model` are the subclass's.

    Attributes:
        sampling: How completions are drawn.
        memory: What is held in memory at a time.
        test: What a test draws in addition to greedy answers.
        seed: Seed of sampling.
        policy: The model with its adapters; None before `configure_model`.
        engine: Draws rows of different z, and what `sampler` draws where that is the same.
        sampler: Draws completions under one z.
        head: Hidden states -> logits.
        curve: The learning curve of the run.
        validated: Questions of this rank and their answers in the last validation.
        tested: What the last test answered with.
        records: One for each question of it.
    """

    sampling: SamplingOptions
    memory: MemoryOptions
    test: TestOptions
    seed: int
    policy: Any
    engine: HFEngine
    sampler: RolloutEngine
    head: Head
    tested: AdaptedPolicy

    def __init__(self) -> None:
        super().__init__()
        self.policy = None
        self.val_score = Accuracy()
        self.curve = LearningCurve()
        self.validated: list[tuple[Example, Answer]] = []
        self.records: list[Record] = []

    def train(self, mode: bool = True) -> PolicyModule:
        """Lightning's switch, except that the policy stays in evaluation mode.

        Dropout would make the policy that is scored another one than the policy that sampled.
        """
        super().train(mode)
        if self.policy is not None:
            self.policy.eval()
        return self

    # ------------------------------------------------------------------ answering

    @property
    def data(self) -> Any:
        """The datamodule in use."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it at run time

    @property
    def task(self) -> Task:
        """The task of the datamodule in use: what verifies answers."""
        return self.data.task

    def answerer(self, task: Task | None = None) -> Answerer:
        """What answers a task's prompts with the policy; None takes the datamodule's task."""
        task = task or self.task
        return Answerer(
            self.policy,
            task,
            self.engine,
            self.sampler,
            self.head,
            max_new_tokens=self.sampling.max_new_tokens or task.max_new_tokens,
            rank=self.global_rank,
            world_size=1 if self._trainer is None else self.trainer.world_size,
            gather=gather_objects,
            total=sum_over_ranks,
        )

    # ------------------------------------------------------------------ validation and test

    def on_train_start(self) -> None:
        """Where the learning curve begins: the validation accuracy before the first step."""
        if self.global_step:
            return
        loader = self.data.val_dataloader()
        count = batches_within(loader, self.trainer.limit_val_batches)
        for index, batch in enumerate(islice(loader, count)):
            self.validation_step(batch.to(self.device), index)
        if count:
            metrics = {name: float(value) for name, value in self._val_score().items()}
            self.curve.add(0, metrics["val/accuracy"], metrics["val/accuracy_se"])
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=0)

    def on_validation_epoch_start(self) -> None:
        """Start a fresh set of answers."""
        self.validated = []

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Score one batch of validation questions; an answer that could not be verified is not a wrong one."""
        answers = self.answerer().answer(prompts)
        self.val_score.update([a.credit for a in answers if a.credit is not None])
        self.validated += zip(prompts.examples, answers, strict=True)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and its standard error, at the steps that were done: Lightning's own x is one less."""
        metrics = self._val_score()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.curve.add(self.global_step, float(metrics["val/accuracy"]), float(metrics["val/accuracy_se"]))
        self.log_dict({**metrics, "step": float(self.global_step)})

    def _val_score(self) -> dict[str, Tensor]:
        score = self.val_score.compute()  # over all ranks
        self.val_score.reset()
        return {f"val/{name}": value.float() for name, value in score.items()}

    def on_test_start(self) -> None:
        """Start a fresh set of records."""
        strategy = ActiveExpert(self.test.samples, self.test.temperature, self.seed)
        self.tested, self.records = strategy.adapt_to_task(self.answerer()), []

    def test_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer one batch with the base and with the expert."""
        self.records += evaluate_batch(self.tested, self.data, prompts, batch_idx)

    def on_test_epoch_end(self) -> None:
        """The records of all ranks, in the order of the questions."""
        self.records = in_order(self.answerer(), self.records)
