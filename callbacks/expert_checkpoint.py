"""Keep the expert with the best validation accuracy, as a folder that PEFT loads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from transformer2.callbacks.protocols import HasPolicy, NeedsPolicy
from transformer2.data import ExpertDataModule
from transformer2.experts import seal_adapter
from transformer2.files import fresh_folder


class ExpertCheckpoint(NeedsPolicy):
    """Writes `expert/` in the run folder whenever validation improves; puts the best expert back at the end of `fit`.

    The base model itself (z = 1) is not a candidate: an expert that never beats it is a result to be seen, not hidden.
    Ties go to the earlier step: past the plateau more steps only add noise.
    """

    monitor = "val/accuracy"

    def __init__(self) -> None:
        self.best_score: float | None = None
        self.best_step = 0
        self.finished = False
        self.best_weights: dict[str, torch.Tensor] = {}  # of what is trained: a few KB, so a resumed run has them too

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn where no validation will choose the expert."""
        first = float("inf") if trainer.limit_val_batches == 0 else trainer.val_check_batch
        if isinstance(first, int | float) and 0 < trainer.max_steps < first:
            rank_zero_warn(
                f"no validation in this run of {trainer.max_steps} steps (the first is due after {first}): the last z "
                "is kept, not the best; lower trainer.val_check_interval"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when the score is the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.global_step == 0:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if math.isnan(score):  # no answer had a verdict
            return
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_step = score, trainer.global_step
            self.best_weights = {n: p.detach().cpu().clone() for n, p in _trained(pl_module).items()}
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run shorter than one validation interval keeps its last z; otherwise the best one is loaded again."""
        self.finished = True
        if self.best_score is None:
            self.best_step = trainer.global_step
        else:
            with torch.no_grad():
                for name, parameter in _trained(pl_module).items():
                    parameter.copy_(self.best_weights[name])
        # Also where a run was resumed into another folder and never beat the score that it came with.
        self._save(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same for a run that was resumed with all its steps done, where Lightning has nothing to train or end."""
        if not self.finished and trainer.global_step:
            self.on_train_end(trainer, pl_module)

    @rank_zero_only
    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = cast(HasPolicy, pl_module)
        config = module.policy.peft_config["default"]
        data = getattr(trainer, "datamodule", None)
        rows = data.provenance() if isinstance(data, ExpertDataModule) else {}
        metadata = {"task": module.task.name, "step": self.best_step, "score": self.best_score, **rows}
        for key, value in metadata.items():
            if hasattr(config, key):
                setattr(config, key, value)
        with fresh_folder(Path(trainer.default_root_dir) / "expert") as fresh:
            module.policy.save_pretrained(fresh, save_embedding_layers=False)  # they are never tuned
            seal_adapter(fresh, rows)

    def state_dict(self) -> dict[str, Any]:
        """The best expert so far, for resume."""
        return {"best_score": self.best_score, "best_step": self.best_step, "best_weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint. (Where its scores do not compare with this run's, the module has taken them out.)"""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
        self.best_weights = state_dict["best_weights"]


def _trained(module: L.LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
