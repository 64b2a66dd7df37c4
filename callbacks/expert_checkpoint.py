"""Keep the expert with the best validation accuracy, as a folder that PEFT loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from transformer2.experts import replace_folder
from transformer2.module import SVFReinforceModule
from transformer2.policy import load_expert


class ExpertCheckpoint(L.Callback):
    """Writes `<dirpath>/` whenever validation improves, and puts the best expert back at the end of `fit`.

    The base model itself (z = 1) is not a candidate: an expert that never beats it is a result to be seen, not hidden.

    Args:
        dirpath: The expert folder; None means `expert/` in the run folder.
        monitor: Metric to maximise. Ties go to the earlier step: past the plateau more steps only add noise.
    """

    def __init__(self, dirpath: str | None = None, monitor: str = "val/accuracy") -> None:
        self.dirpath, self.monitor = dirpath, monitor
        self.best_score: float | None = None
        self.best_step = 0

    def folder(self, trainer: L.Trainer) -> Path:
        """Where the expert is kept."""
        return Path(self.dirpath or Path(trainer.default_root_dir) / "expert")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when the score is the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.global_step == 0:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_step = score, trainer.global_step
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run shorter than one validation interval keeps its last z; otherwise the best one is loaded again."""
        if self.best_score is None:
            self._save(trainer, pl_module)
            return
        assert isinstance(pl_module, SVFReinforceModule)
        trainer.strategy.barrier()
        load_expert(pl_module.policy, self.folder(trainer))

    @rank_zero_only
    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SVFReinforceModule)
        config = pl_module.policy.peft_config["default"]
        for key, value in self._metadata(trainer, pl_module).items():
            if hasattr(config, key):
                setattr(config, key, value)
        target = self.folder(trainer)
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        pl_module.policy.save_pretrained(fresh, save_embedding_layers=False)  # they are never tuned
        replace_folder(fresh, target)

    def _metadata(self, trainer: L.Trainer, pl_module: SVFReinforceModule) -> dict[str, Any]:
        return {"task": pl_module.task.name, "step": trainer.global_step, "score": self.best_score}

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, for resume."""
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
