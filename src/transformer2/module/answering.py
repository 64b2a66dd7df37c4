"""Answers of a policy and their verdicts: what training rewards, validation scores and a test records."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from transformer2.metrics import Accuracy
from transformer2.policy import reference
from transformer2.report.notes import answered
from transformer2.rollout.base import RolloutEngine, Sampling
from transformer2.rollout.hf import HFEngine
from transformer2.strategies import gather_objects
from transformer2.svf.rows import has_rows
from transformer2.tasks import Task
from transformer2.types import PromptBatch, Rollouts, Verdict
from transformer2.verifiers import stop_if_unverified, verify_all


class Answering(L.LightningModule):
    """A module whose policy answers prompts; the hyper-parameters and `configure_model` are the subclass's.

    Attributes:
        policy: The model with its adapters; None before `configure_model`.
        engine: Draws rows of different z, and what `sampler` draws where that is the same.
        sampler: Draws completions under one z.
        last_answers: The last batch of validation, answers and verdicts.
        records: One mapping for each question of a test.
        validated: One for each answer of this rank to the last validation.
    """

    policy: Any
    engine: HFEngine
    sampler: RolloutEngine

    def __init__(self) -> None:
        super().__init__()
        self.policy = None
        self.val_correct = Accuracy()
        self.last_answers: tuple[Rollouts, list[Verdict]] | None = None
        self.records: list[dict[str, Any]] = []
        self.validated: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ sampling and verifying

    @property
    def task(self) -> Task:
        """The task of the datamodule in use: what verifies answers."""
        return self.trainer.datamodule.task  # type: ignore[attr-defined]  # Lightning sets it at run time

    def sample(self, prompts: PromptBatch, temperature: float, seed: int) -> Rollouts:
        """Completions under whatever is active: an adapter, the base, or a z for each row."""
        budget = self.hparams["max_new_tokens"] or self.task.max_new_tokens
        engine = self.engine if has_rows(self.policy) else self.sampler
        return engine.generate(self.policy, prompts, Sampling(temperature, max_new_tokens=budget), seed)

    def verify(self, rollouts: Rollouts) -> list[Verdict]:
        """One verdict per completion; over 5 % without one stop the run."""
        verdicts = verify_all(self.task, rollouts.examples, rollouts.completions)
        # Over all ranks, which must decide alike.
        stop_if_unverified([verdict for part in gather_objects(verdicts) for verdict in part])
        return verdicts

    def answer(self, prompts: PromptBatch) -> tuple[Rollouts, list[Verdict]]:
        """Greedy answers and their verdicts: what validation and test score."""
        rollouts = self.sample(prompts, temperature=0.0, seed=0)
        return rollouts, self.verify(rollouts)

    # ------------------------------------------------------------------ validation and test

    def on_train_start(self) -> None:
        """Where the learning curve begins: the validation accuracy before the first step."""
        if self.global_step or self.logger is None:
            return
        for batch in self.trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]  # set at run time
            _, verdicts = self.answer(batch.to(self.device))
            self._count(verdicts)
        metrics = self._val_score()
        self.logger.log_metrics({name: float(value) for name, value in metrics.items()}, step=0)

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Score one batch of validation questions."""
        self.last_answers = rollouts, verdicts = self.answer(prompts)
        self._count(verdicts)
        self.validated += map(answered, rollouts.completions, rollouts.finished_B, verdicts)

    def on_validation_epoch_start(self) -> None:
        """Start a fresh set of answers."""
        self.validated = []

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and its standard error."""
        self.log_dict(self._val_score())

    def _count(self, verdicts: list[Verdict]) -> None:
        """Count answers for the validation score; one that could not be verified is no wrong one."""
        self.val_correct.update([v.correct for v in verdicts if v.reward is not None])

    def _val_score(self) -> dict[str, Tensor]:
        score = self.val_correct.compute()  # over all ranks
        self.val_correct.reset()
        return {f"val/{name}": value.float() for name, value in score.items()}

    def on_test_epoch_end(self) -> None:
        """The records of all ranks, in the order of the questions."""
        everyone = [record for records in gather_objects(self.records) for record in records]
        self.records = sorted(everyone, key=lambda record: record["row"])

    def on_test_start(self) -> None:
        """Start a fresh set of records."""
        self.records = []

    def test_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer one batch with the base and with the expert."""
        with reference(self.policy):
            base, base_verdicts = self.answer(prompts)
            base_right = self.right_samples(prompts, batch_idx)
        expert, verdicts = self.answer(prompts)
        right = self.right_samples(prompts, batch_idx)
        asked = self.trainer.datamodule.asked(prompts)  # type: ignore[attr-defined]  # Lightning sets it at run time
        self.records += [
            {
                **question,
                **answered(base.completions[b], base.finished_B[b], base_verdicts[b], "base_"),
                **answered(expert.completions[b], expert.finished_B[b], verdicts[b]),
            }
            for b, question in enumerate(asked)
        ]
        for record, ours, its in zip(self.records[-len(prompts) :], right, base_right, strict=False):
            record |= {"samples": ours[1], "right": ours[0], "base_samples": its[1], "base_right": its[0]}

    def right_samples(self, prompts: PromptBatch, batch_idx: int) -> list[tuple[int, int]]:
        """Of `test_samples` completions of each prompt, how many are right and how many have a verdict; [] without."""
        count = self.hparams["test_samples"]
        if not count:
            return []
        seed = (self.hparams["seed"] * 1_000_003 + batch_idx) * 4096
        verdicts = self.verify(self.sample(prompts.repeat(count), self.hparams["test_temperature"], seed))
        groups = [[v for v in verdicts[i : i + count] if v.reward is not None] for i in range(0, len(verdicts), count)]
        return [(sum(v.correct for v in group), len(group)) for group in groups]

    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> Rollouts:
        """Greedy answers of one batch under whatever is active: the second pass, where a callback chose the z."""
        return self.sample(prompts, temperature=0.0, seed=0)
