"""One evaluation in two passes, from the experts to the report; the hooks that drive it are evaluator.py's.

begin     experts -> adapters; shots -> the constant control; adapt_to_task
enter     adapt_to_batch -> one z per row
leave     verdicts on the answers; base and controls on the same rows, all in one batch
finish    adapters out again; records of all ranks -> report, files, TensorBoard
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from tqdm import tqdm

from transformer2 import tiny
from transformer2.adaptation.controls import control_arms
from transformer2.adaptation.few_shot import score_members
from transformer2.adaptation.members import matrices, members
from transformer2.adaptation.mixture import base_row
from transformer2.adaptation.scoring import Scorer
from transformer2.data import UnseenTaskDataModule
from transformer2.errors import ConfigError
from transformer2.experts import Expert, load_experts
from transformer2.module import SVFReinforceModule
from transformer2.report.adaptation import save_figure
from transformer2.report.notes import answered, details, scores
from transformer2.report.table import versions, write_report
from transformer2.strategies import gather_objects, in_lockstep
from transformer2.svf.rows import z_rows
from transformer2.types import PromptBatch, Report, Rollouts, Score, Verdict
from transformer2.verifiers import isolation, stop_if_unverified, verify_all

__all__ = ["Choice", "TwoPass"]


@dataclass(frozen=True)
class Choice:
    """What a first pass decided for a batch.

    Attributes:
        weights: (B, K + 1) or (L, B, K + 1) over the experts and the base; one row serves all.
        columns: What to note in the B records (first-pass text, chosen expert, alpha).
    """

    weights: Tensor
    columns: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class TwoPass:
    """State of an evaluation, and what a strategy overrides.

    Args:
        experts: Expert folders; None takes the shipped ones of the embedded model.
        controls: Also score each expert alone, their uniform mixture, and the best constant z.
        max_rows: Rows (prompts x mixtures) of one micro-batch; None takes all at once.
        seed: Of whatever the strategy draws.

    Attributes:
        folder: Where a run of its own keeps its files; None inside `fit`.
        progress: Whether to draw a bar.
        report: The last evaluation's.
        cache: Answers and verdicts of base and controls, which never change: they are answered once, however often a
            `fit` evaluates, and once for several strategies that share the cache.
    """

    strategy: ClassVar[str] = "base"
    picture: ClassVar[str] = ""  # TensorBoard tag of its figure

    def __init__(self, experts: list[str] | None, controls: bool, max_rows: int | None, seed: int) -> None:
        for folder in experts or []:
            refuse_missing(folder, "experts")
        self.experts_from, self.controls, self.max_rows, self.seed = experts, controls, max_rows, seed
        self.folder: Path | None = None
        self.progress = False
        self.report: Report | None = None
        self.cache: dict[Any, dict[int, dict[str, Any]]] = {}
        self.running = False
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

    def figure(self) -> Any:
        """A matplotlib figure, where there is a `picture`; kept as figures/<last part of its tag>.png."""

    # ------------------------------------------------------------------ the evaluation

    def begin(self, trainer: L.Trainer, pl_module: L.LightningModule, data: UnseenTaskDataModule) -> None:
        """First pass over the task."""
        assert isinstance(pl_module, SVFReinforceModule)
        if in_lockstep(trainer.strategy):
            raise ConfigError("experts are not chosen or mixed under ZeRO-3 yet; adapt with trainer.strategy: ddp")
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
        key = (data.task.name, data.protocol, data.seed, data.few_shot, *(e.sha256 for e in self.experts))
        self.judged = self.cache.setdefault(key, {})  # position among the scored rows -> columns of its record
        self.seconds = {"first_pass": 0.0, "second_pass": 0.0, "controls": 0.0}
        self.running = True
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

    def enter(self, batch: PromptBatch) -> None:
        """First pass over a batch; from here to `leave` the policy is what was chosen."""
        self.choice = self._timed("first_pass", lambda: self.adapt_to_batch(batch))
        self._batch = ExitStack()
        self._batch.enter_context(z_rows(self.scorer.policy, self.choice.weights, self.scorer.members, mix="raw"))
        self._second = time.perf_counter()

    def leave(self, batch: PromptBatch, answers: Rollouts) -> None:
        """Judge the answers of the second pass, and those of the controls."""
        self.seconds["second_pass"] += time.perf_counter() - self._second
        self._batch.close()
        self._timed("controls", lambda: self._judge_controls(batch))
        verdicts = self._verify(answers)
        for b, question in enumerate(self.data.asked(batch)):
            self.records.append(
                {
                    **question,
                    "strategy": self.strategy,
                    **(self.choice.columns[b] if self.choice.columns else {}),
                    **answered(answers.completions[b], answers.finished_B[b], verdicts[b]),
                    **self.judged[question["row"]],
                }
            )
        self.bar.update()

    def _arms(self, shots: PromptBatch) -> dict[str, Tensor]:
        names = [e.name for e in self.experts]
        return control_arms(names, lambda w: self.scores(shots, w), self.controls and not self.judged)

    def scores(self, shots: PromptBatch, weights_LNK: Tensor) -> tuple[list[float], list[float]]:
        """Share of right answers and mean log-likelihood of the right answers, for N mixtures."""
        return score_members(self.scorer, shots, self.data.task, self.budget, weights_LNK)

    def _judge_controls(self, batch: PromptBatch) -> None:
        if all(row in self.judged for row in batch.positions):
            return
        rollouts = self.scorer.answers(batch, torch.cat(list(self.arms.values())), self.budget)
        verdicts = {name: self._verify(r) for name, r in zip(self.arms, rollouts, strict=True)}
        for b, row in enumerate(batch.positions):
            on_controls = {name: v[b] for name, v in verdicts.items() if name != "base"}
            self.judged[row] = {
                **answered(rollouts[0].completions[b], rollouts[0].finished_B[b], verdicts["base"][b], "base_"),
                "controls_correct": {name: None if v.reward is None else v.correct for name, v in on_controls.items()},
            }

    def _verify(self, rollouts: Rollouts) -> list[Verdict]:
        verdicts = verify_all(self.data.task, rollouts.examples, rollouts.completions)
        stop_if_unverified(verdicts)
        return verdicts

    def finish(self, trainer: L.Trainer) -> None:
        """Report."""
        self.abort()
        self.bar.close()
        gathered = [record for part in self.gather(self.records) for record in part]
        self.records = sorted(gathered, key=lambda record: record["row"])
        controls = {
            name: [bool(right) for r in self.records if (right := r["controls_correct"][name]) is not None]
            for name in self.records[0]["controls_correct"]
        }
        facts = self.facts()
        self.report = Report(
            task=self.data.task.name,
            protocol=self.data.protocol,
            **scores(self.records),
            controls={name: Score.of(right) for name, right in controls.items()},
            seconds={name: round(value, 2) for name, value in self.seconds.items()},
            seeds=(self.seed,) if self.data.seed == self.seed else (self.seed, self.data.seed),
            versions=versions(),
            sandbox=isolation(self.data.task),
            **{
                **facts,
                "details": {**self._settings(), **details(self.records, self.strategy), **facts.get("details", {})},
            },
        )
        if trainer.is_global_zero:
            self._write(trainer, self.report)

    def _settings(self) -> dict[str, Any]:
        shots = [example.id for example in self.data.shots().examples]
        return {"strategy": self.strategy, "experts": [e.name for e in self.experts], "few_shot": shots}

    def _write(self, trainer: L.Trainer, report: Report) -> None:
        figure = self.figure()
        if self.folder is not None:
            write_report(self.folder, report, self.records)
            if figure is not None:
                save_figure(figure, self.folder / "figures" / f"{self.picture.rpartition('/')[2]}.png")
        if trainer.logger is None:
            return
        group = self._tag(trainer, f"adapt/{self.strategy}")
        scores = {"accuracy": report.result.accuracy, "accuracy_se": report.result.se, **report.seconds}
        metrics = {f"{group}/{name}": float(value) for name, value in scores.items()}
        trainer.logger.log_metrics(metrics, step=trainer.global_step)
        if figure is not None and isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_figure(self._tag(trainer, self.picture), figure, trainer.global_step)

    def _tag(self, trainer: L.Trainer, tag: str) -> str:
        """The tag, with strategy and task at its end where an evaluator before this one in the run has it already."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it at run time
        before = takewhile(lambda c: c is not self, callbacks)
        taken = {t for c in before if isinstance(c, TwoPass) for t in (f"adapt/{c.strategy}", c.picture)}
        return f"{tag}_{self.strategy}_{self.data.task.name}" if tag in taken else tag

    # ------------------------------------------------------------------ helpers

    def abort(self) -> None:
        """Take the adapters out again."""
        self._open.close()
        self.running = False

    def gather(self, mine: Any) -> list[Any]:
        """The objects of all ranks, in rank order."""
        return gather_objects(mine)

    def _timed(self, part: str, run: Any) -> Any:
        start = time.perf_counter()
        try:
            return run()
        finally:
            self.seconds[part] += time.perf_counter() - start


def refuse_missing(folder: str, key: str) -> None:
    """Say at once, not after the model has been loaded, that an expert is not there."""
    if not Path(folder).expanduser().is_dir():
        raise ConfigError(f"adapt.{key}: {folder} is no folder here; train that expert with fit, or name its folder")
