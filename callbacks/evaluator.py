"""Two-pass evaluation of an unseen task as a callback: choose a z, answer with it, stand beside the controls.

    first pass    adapt_to_task(few_shot) once, adapt_to_batch(batch) for every batch -> mixing weights
    second pass   the scored rows answered under them

Without an override both say "the base", and the evaluator is the base-model baseline. In `transformer2 adapt` (or
`trainer.predict` with an UnseenTaskDataModule) it rides on the loop; with a `task` of its own it runs inside `fit`,
after validation, and leaves no trace there: adapters are removed again, random numbers put back.

Departure from the reference code: whatever was chosen, every rank runs the same number of forward passes, since a
batch of different choices is one batch with one z per row.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from transformer2 import tasks
from transformer2.arguments import Count, Seed, check_arguments
from transformer2.callbacks.two_pass import Choice, TwoPass
from transformer2.data import UnseenTaskDataModule
from transformer2.types import PromptBatch, Rollouts

__all__ = ["AdaptationEvaluator", "Choice"]


class AdaptationEvaluator(TwoPass, L.Callback):
    """Base class of the three strategies, and by itself the base-model baseline.

    Args:
        experts: Expert folders; None takes the shipped ones of the embedded model.
        task: Unseen task to evaluate inside `fit`; None outside, where the trainer's datamodule has the task.
        task_options: Its options.
        data_dir: Its rows, like all up to `test_limit` inside `fit` only.
        few_shot: Its few-shot rows.
        test_limit: Score at most this many rows.
        every_n_epochs: Inside `fit`: after every n-th validation.
        controls: Also score each expert alone, their uniform mixture, and the best constant z.
        max_rows: Rows (prompts x mixtures) of one micro-batch; None takes all at once.
        seed: Of the choice of shots, inside `fit`, and of whatever the strategy draws.
    """

    def __init__(
        self,
        experts: list[str] | None = None,
        task: str | None = None,
        task_options: dict | None = None,
        data_dir: str | None = None,
        few_shot: Count = 20,
        test_limit: Count | None = None,
        every_n_epochs: Count = 1,
        controls: bool = True,
        max_rows: Count | None = None,
        seed: Seed = 0,
    ) -> None:
        check_arguments("adapt", AdaptationEvaluator.__init__, locals())
        super().__init__(experts, controls, max_rows, seed)
        if task is not None:
            tasks.get(task, **(task_options or {}))  # a typo is refused before anything is trained
        self.own_task, self.task_options, self.data_dir = task, task_options, data_dir
        self.every_n_epochs = every_n_epochs
        self.few_shot, self.test_limit = few_shot, test_limit
        self.validations = 0
        self.own_data: UnseenTaskDataModule | None = None

    # ------------------------------------------------------------------ Lightning's hooks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Open the task of its own: what is wrong with it must not be found hours later."""
        if self.own_task is not None and stage == "fit":
            self._data(trainer, pl_module).predict_dataloader()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """First pass over the task."""
        data = getattr(trainer, "datamodule", None)
        if self.own_task is None and isinstance(data, UnseenTaskDataModule):
            self.begin(trainer, pl_module, data)

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, *args: Any
    ) -> None:
        """First pass over the batch; what the module answers next, it answers under the chosen z."""
        if self.running:
            self.enter(batch)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Rollouts, batch: PromptBatch, *args: Any
    ) -> None:
        """Judge the answers, and those of the controls."""
        if self.running:
            self.leave(batch, outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report."""
        if self.running:
            self.finish(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Inside `fit`: the whole evaluation on a task of its own, without a trace."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.own_task is None:
            return
        self.validations += 1
        if self.validations % self.every_n_epochs:
            return
        with isolate_rng(), torch.no_grad():
            self.begin(trainer, pl_module, self._data(trainer, pl_module))
            for batch in self.data.predict_dataloader():
                batch = batch.to(pl_module.device)
                self.enter(batch)
                self.leave(batch, self.scorer.rows(batch, self.choice.weights, self.budget))
            self.finish(trainer)

    @property
    def state_key(self) -> str:
        """Evaluators of several tasks may sit in one run."""
        return f"{type(self).__qualname__}[{self.own_task}]"

    def state_dict(self) -> dict[str, int]:
        """How many validations there were, so that a resumed run evaluates after the same ones."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        self.validations = state_dict["validations"]

    def on_exception(self, *args: Any) -> None:
        """Take the adapters out again."""
        self.abort()

    def _data(self, trainer: L.Trainer, pl_module: L.LightningModule) -> UnseenTaskDataModule:
        if self.own_data is None:
            assert self.own_task is not None
            options = {key: pl_module.hparams[key] for key in ("base", "model_kwargs", "max_new_tokens")}
            options |= {"few_shot": self.few_shot, "test_limit": self.test_limit, "seed": self.seed}
            options |= getattr(getattr(trainer, "datamodule", None), "prompting", {})  # prompts are the run's
            options |= {"data_dir": self.data_dir, "task_options": self.task_options}
            self.own_data = UnseenTaskDataModule(self.own_task, **options)
            self.own_data.setup("predict")
            self.own_data.trainer = trainer
        return self.own_data
