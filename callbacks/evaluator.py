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

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm import tqdm

from transformer2 import tasks, tiny
from transformer2.adaptation.few_shot import score_members
from transformer2.adaptation.members import matrices, members
from transformer2.adaptation.mixture import base_row, constant_rows, expert_rows
from transformer2.adaptation.scoring import Scorer
from transformer2.data import UnseenTaskDataModule
from transformer2.errors import ConfigError
from transformer2.experts import Expert, load_experts
from transformer2.module import SVFReinforceModule
from transformer2.report.adaptation import save_figure
from transformer2.report.statistics import mcnemar_p
from transformer2.report.table import versions, write_report
from transformer2.svf.rows import z_rows
from transformer2.types import PromptBatch, Report, Rollouts, Score
from transformer2.verifiers import verify_all

__all__ = ["AdaptationEvaluator", "Choice"]

CONSTANTS = (0.8, 0.9, 1.1, 1.2)


@dataclass(frozen=True)
class Choice:
    """What a first pass decided for a batch.

    Attributes:
        weights: (B, K + 1) or (L, B, K + 1) over the experts and the base; one row serves all.
        columns: What to note in the B records (first-pass text, chosen expert, alpha).
    """

    weights: Tensor
    columns: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class AdaptationEvaluator(L.Callback):
    """Base class of the three strategies, and by itself the base-model baseline.

    Args:
        experts: Expert folders; None takes the shipped ones of the embedded model.
        task: Unseen task to evaluate inside `fit`; None outside, where the trainer's datamodule has the task.
        data_dir: Its rows, like all up to `test_limit` inside `fit` only.
        few_shot: Its few-shot rows.
        test_limit: Score at most this many rows.
        every_n_epochs: Inside `fit`: after every n-th validation.
        controls: Also score each expert alone, their uniform mixture, and the best constant z.
        max_rows: Rows (prompts x mixtures) of one micro-batch; None takes all at once.
        seed: Of the choice of shots, inside `fit`, and of whatever the strategy draws.
    """

    strategy: ClassVar[str] = "base"

    def __init__(
        self,
        experts: list[str] | None = None,
        task: str | None = None,
        data_dir: str | None = None,
        few_shot: int = 20,
        test_limit: int | None = None,
        every_n_epochs: int = 1,
        controls: bool = True,
        max_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        if every_n_epochs < 1 or (max_rows is not None and max_rows < 1):
            raise ConfigError(f"every_n_epochs and max_rows must be at least 1, not {every_n_epochs} and {max_rows}")
        if task is not None:
            tasks.get(task)  # a typo is refused before anything is trained
        self.experts_from, self.own_task, self.data_dir = experts, task, data_dir
        self.few_shot, self.test_limit, self.every_n_epochs = few_shot, test_limit, every_n_epochs
        self.controls, self.max_rows, self.seed = controls, max_rows, seed
        self.folder: Path | None = None  # where a standalone run keeps its files; set by the command
        self.progress = False
        self.report: Report | None = None
        self.validations = 0
        self.own_data: UnseenTaskDataModule | None = None
        self._open = ExitStack()

    # ------------------------------------------------------------------ what a strategy overrides

    def adapt_to_task(self, few_shot: PromptBatch) -> None:
        """Look at the few-shot rows, once per evaluation."""

    def adapt_to_batch(self, batch: PromptBatch) -> Choice:
        """Choose the z of every row of a batch."""
        return Choice(base_row(len(self.experts)))

    def facts(self) -> dict[str, Any]:
        """Fields of the report that the strategy knows (`alpha`, `evaluations`, `details`)."""
        return {}

    def figures(self) -> dict[str, Any]:
        """TensorBoard tag -> matplotlib figure; kept as figures/<last part of the tag>.png."""
        return {}

    # ------------------------------------------------------------------ Lightning's hooks

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """First pass over the task."""
        data = getattr(trainer, "datamodule", None)
        if self.own_task is None and isinstance(data, UnseenTaskDataModule):
            self._begin(trainer, pl_module, data)

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, *args: Any
    ) -> None:
        """First pass over the batch; what the module answers next, it answers under the chosen z."""
        if self._running:
            self._enter(batch)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Rollouts, batch: PromptBatch, *args: Any
    ) -> None:
        """Judge the answers, and those of the controls."""
        if self._running:
            self._leave(batch, outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report."""
        if self._running:
            self._finish(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Inside `fit`: the whole evaluation on a task of its own, without a trace."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.own_task is None:
            return
        self.validations += 1
        if self.validations % self.every_n_epochs:
            return
        with isolate_rng(), torch.no_grad():
            self._begin(trainer, pl_module, self._data(trainer, pl_module))
            for batch in self.data.predict_dataloader():
                batch = batch.to(pl_module.device)
                self._enter(batch)
                self._leave(batch, self.scorer.rows(batch, self.choice.weights, self.budget))
            self._finish(trainer)

    def on_exception(self, *args: Any) -> None:
        """Take the adapters out again."""
        self._open.close()
        self._running = False

    # ------------------------------------------------------------------ the evaluation

    _running = False

    def _data(self, trainer: L.Trainer, pl_module: L.LightningModule) -> UnseenTaskDataModule:
        if self.own_data is None:
            assert self.own_task is not None
            base = pl_module.hparams["base"]
            limits = {"few_shot": self.few_shot, "test_limit": self.test_limit, "seed": self.seed}
            self.own_data = UnseenTaskDataModule(self.own_task, base, self.data_dir, **limits)  # type: ignore[arg-type]
            self.own_data.setup("predict")
            self.own_data.trainer = trainer
        return self.own_data

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule, data: UnseenTaskDataModule) -> None:
        assert isinstance(pl_module, SVFReinforceModule)
        pl_module.configure_model()
        self.data, self.rank, self.world_size = data, trainer.global_rank, trainer.world_size
        self.budget = pl_module.hparams["max_new_tokens"] or data.task.max_new_tokens
        self.device, self.on_tiny = pl_module.device, pl_module.hparams["base"] == "tiny"
        self.experts = self.load()
        self._open = ExitStack()
        names = self._open.enter_context(members(pl_module.policy, [*self.experts, *self.helpers()]))
        self.helper_names, names = names[len(self.experts) : -1], [*names[: len(self.experts)], names[-1]]
        max_rows = self.max_rows or pl_module.hparams["max_rollout_rows"]
        self.scorer = Scorer(pl_module.policy, names, pl_module.engine, pl_module.head, max_rows)
        self.matrices = matrices(pl_module.policy)
        self.records: list[dict[str, Any]] = []
        self.seconds = {"first_pass": 0.0, "second_pass": 0.0, "controls": 0.0}
        self._running = True
        self.bar = tqdm(desc=f"adapt {self.strategy}", disable=not (self.progress and self.rank == 0), unit="step")
        shots = data.shots().to(pl_module.device)
        self.arms = self._timed("controls", lambda: self._arms(shots))
        self._timed("first_pass", lambda: self.adapt_to_task(shots))
        self.bar.reset(total=len(data.predict_dataloader()))

    def load(self) -> list[Expert]:
        """The experts to choose from."""
        if self.experts_from is None and not self.on_tiny:
            raise ConfigError("name the expert folders: adapt.experts (only the embedded model ships with its own)")
        shipped = [tiny.expert_path(name) for name in tiny.EXPERTS]
        return load_experts(shipped if self.experts_from is None else self.experts_from)

    def helpers(self) -> list[Expert]:
        """Further experts, which are not chosen from but used in the first pass."""
        return []

    def _arms(self, shots: PromptBatch) -> dict[str, Tensor]:
        """What is scored beside the result, as weights (1, K + 1)."""
        k = len(self.experts)
        arms = {"base": base_row(k)}
        if self.controls:
            singles = expert_rows(k)
            arms |= {f"expert {e.name}": singles[i : i + 1] for i, e in enumerate(self.experts)}
            arms["uniform mixture"] = singles.mean(0, keepdim=True)
            constants = constant_rows(k, CONSTANTS)
            shares, ties = score_members(self.scorer, shots, self.data.task.verify, self.budget, constants)
            best = max(range(len(CONSTANTS)), key=lambda i: (shares[i], ties[i]))
            arms[f"constant z = {CONSTANTS[best]}"] = constants[best : best + 1]
        return arms

    def _enter(self, batch: PromptBatch) -> None:
        self.choice = self._timed("first_pass", lambda: self.adapt_to_batch(batch))
        self._batch = ExitStack()
        self._batch.enter_context(z_rows(self.scorer.policy, self.choice.weights, self.scorer.members, mix="raw"))
        self._second = time.perf_counter()

    def _leave(self, batch: PromptBatch, answers: Rollouts) -> None:
        self.seconds["second_pass"] += time.perf_counter() - self._second
        self._batch.close()
        arms = torch.cat(list(self.arms.values()))
        others = self._timed("controls", lambda: self.scorer.answers(batch, arms, self.budget))
        verdicts = verify_all(self.data.task.verify, batch.examples, answers.completions)
        judged = {
            name: verify_all(self.data.task.verify, batch.examples, r.completions)
            for name, r in zip(self.arms, others, strict=True)
        }
        for b, example in enumerate(batch.examples):
            self.records.append(
                {
                    "id": example.id,
                    "strategy": self.strategy,
                    "answer": example.answer,
                    **(self.choice.columns[b] if self.choice.columns else {}),
                    "completion": answers.completions[b],
                    "correct": verdicts[b].correct,
                    "extracted": verdicts[b].extracted,
                    "reason": verdicts[b].reason,
                    "base_completion": others[0].completions[b],
                    "base_correct": judged["base"][b].correct,
                    "controls_correct": {name: judged[name][b].correct for name in self.arms if name != "base"},
                }
            )
        self.bar.update()

    def _finish(self, trainer: L.Trainer) -> None:
        self._open.close()
        self._running = False
        self.bar.close()
        order = {example.id: i for i, example in enumerate(self.data.scored())}
        gathered = [record for part in self.gather(self.records) for record in part]
        self.records = sorted(gathered, key=lambda record: order[record["id"]])
        base, result = ([bool(r[key]) for r in self.records] for key in ("base_correct", "correct"))
        controls = [name for name in self.arms if name != "base"]
        facts = self.facts()
        self.report = Report(
            task=self.data.task.name,
            protocol=self.data.protocol,
            n=len(self.records),
            base=Score.of(base),
            result=Score.of(result),
            paired_p=mcnemar_p(base, result),
            controls={name: Score.of([r["controls_correct"][name] for r in self.records]) for name in controls},
            seconds={name: round(value, 2) for name, value in self.seconds.items()},
            seeds=(self.seed,) if self.data.seed == self.seed else (self.seed, self.data.seed),
            versions=versions(),
            **{**facts, "details": {**self._settings(), **facts.get("details", {})}},
        )
        if trainer.is_global_zero:
            self._write(trainer, self.report)

    def _settings(self) -> dict[str, Any]:
        shots = [example.id for example in self.data.shots().examples]
        return {"strategy": self.strategy, "experts": [e.name for e in self.experts], "few_shot": shots}

    def _write(self, trainer: L.Trainer, report: Report) -> None:
        figures = self.figures()
        if self.folder is not None:
            write_report(self.folder, report, self.records)
            for tag, figure in figures.items():
                save_figure(figure, self.folder / "figures" / f"{tag.rpartition('/')[2]}.png")
        if trainer.logger is None:
            return
        scores = {"accuracy": report.result.accuracy, "accuracy_se": report.result.se, **report.seconds}
        metrics = {f"adapt/{self.strategy}/{name}": float(value) for name, value in scores.items()}
        trainer.logger.log_metrics(metrics, step=trainer.global_step)
        if isinstance(trainer.logger, TensorBoardLogger):
            for tag, figure in figures.items():
                trainer.logger.experiment.add_figure(tag, figure, trainer.global_step)

    # ------------------------------------------------------------------ helpers

    def gather(self, mine: Any) -> list[Any]:
        """The objects of all ranks, in rank order."""
        if self.world_size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def _timed(self, part: str, run: Any) -> Any:
        start = time.perf_counter()
        try:
            return run()
        finally:
            self.seconds[part] += time.perf_counter() - start
