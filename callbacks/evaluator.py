"""Adaptation to an unseen task, evaluated inside `fit` after a validation.

Adapters are removed again and random states restored, so training is not affected. `transformer2 adapt` runs the same
evaluation (adaptation/evaluate.py) outside.
"""

from __future__ import annotations

from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from transformer2 import tasks
from transformer2.adaptation.context import Cache
from transformer2.adaptation.evaluate import evaluate
from transformer2.adaptation.strategy import Strategy
from transformer2.arguments import Count, check_arguments
from transformer2.callbacks.protocols import HasPolicy, check_policy
from transformer2.data import UnseenTaskDataModule
from transformer2.data.loader import batches_within
from transformer2.errors import ConfigError
from transformer2.types import Report

__all__ = ["AdaptationEvaluator"]


class AdaptationEvaluator(L.Callback, Strategy):
    """When and on what a strategy is evaluated; by itself it evaluates the base model.

    Args:
        task: Unseen task to evaluate inside `fit`; without one nothing is evaluated there.
        task_options: Its options.
        data_dir: Its rows.
        few_shot: Its few-shot rows.
        test_limit: Score at most this many rows.
        every_n_epochs: After every n-th validation of the run.
        options: The arguments of the strategy.

    Attributes:
        report: The last evaluation's.
    """

    def __init__(
        self,
        task: str | None = None,
        task_options: dict | None = None,
        data_dir: str | None = None,
        few_shot: Count = 20,
        test_limit: Count | None = None,
        every_n_epochs: Count = 1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_arguments("adapt", AdaptationEvaluator.__init__, locals())
        if task is not None:
            tasks.get(task, **(task_options or {}))  # a typo is refused before anything is trained
        self.own_task, self.every_n_epochs = task, every_n_epochs
        self.data_options: dict[str, Any] = {"task_options": task_options, "data_dir": data_dir, "few_shot": few_shot}
        self.data_options |= {"test_limit": test_limit, "seed": self.seed}
        self.own_data: UnseenTaskDataModule | None = None
        self.report: Report | None = None
        self.cache: Cache = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Open the unseen task: what is wrong with it must not be found hours later."""
        if self.own_task is not None and stage == "fit" and self.own_data is None:
            check_policy(self, pl_module, stage)
            # Prompts are built as the run's.
            prompting = getattr(getattr(trainer, "datamodule", None), "prompting", None)
            if prompting is None:
                raise ConfigError(
                    f"{type(self).__name__} builds prompts as the run does; train with an ExpertDataModule"
                )
            self.own_data = UnseenTaskDataModule(self.own_task, **prompting, **self.data_options)
            self.leave_out_shots(self.own_data)
            self.own_data.setup("fit")
            self.own_data.trainer = trainer
            self.own_data.test_dataloader()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the experts into the policy and take them out again: what does not fit is found before the first step."""
        if self.own_data is not None:
            if not batches_within(cast(Any, trainer).datamodule.val_dataloader(), trainer.limit_val_batches):
                rank_zero_warn(f"{type(self).__name__} evaluates after validations, and this run has none")
            answerer = cast(HasPolicy, pl_module).answerer(self.own_data.task)
            with isolate_rng(), self.loaded(answerer, self.own_data.base):
                pass

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate, and log."""
        module = cast(HasPolicy, pl_module)
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.own_data is None:
            return
        if module.curve.validations % self.every_n_epochs:
            return
        with isolate_rng():
            found = evaluate(module.answerer(self.own_data.task), self.own_data, self, self.cache)
        self.report = found.report
        if trainer.is_global_zero:
            tags = (self._tag(trainer, tag) for tag in (f"adapt/{self.name}", self.picture))
            found.log(trainer.loggers, trainer.global_step, *tags)

    def _tag(self, trainer: L.Trainer, tag: str) -> str:
        """The tag; where an evaluator before this one has it, with strategy, task and the place among those alike."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it at run time
        before = [c for c in callbacks[: callbacks.index(self)] if isinstance(c, AdaptationEvaluator)]
        taken = {t for c in before for t in (f"adapt/{c.name}", c.picture)}
        if tag not in taken or self.own_data is None:
            return tag
        alike = sum((c.name, c.own_task) == (self.name, self.own_task) for c in before)
        return f"{tag}_{self.name}_{self.own_data.task.name}{f'_{alike + 1}' if alike else ''}"
