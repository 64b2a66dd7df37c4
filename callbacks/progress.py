"""One progress bar for the whole run: reward (or loss), accuracy, what tells of a collapse, and the time left."""

from __future__ import annotations

import sys
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from tqdm import tqdm

from transformer2.callbacks.protocols import HasPolicy, NeedsPolicy

DRAW_INTERVAL, LOG_INTERVAL = 0.2, 10.0  # seconds between redraws on a terminal, and between lines of a file
SHOWN = {
    "train/reward": "reward", "val/accuracy": "val acc", "train/kl": "KL", "train/entropy": "entropy",
    "train/completion_length": "length",
}  # fmt: skip


class TrainingBar(NeedsPolicy, ProgressBar):
    """Steps done and to do; the latest reward, validation accuracy, KL, entropy and length; signs of a collapse."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Any = None
        self.enabled = True

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Draw again."""
        self.enabled = True

    def _open(self, total: int | None, label: str, done: int = 0) -> None:
        self.close()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            unit="step" if label == "fit" else "batch",
            disable=not self.enabled,
            dynamic_ncols=True,
            mininterval=DRAW_INTERVAL if sys.stderr.isatty() else LOG_INTERVAL,
            file=sys.stderr,
        )

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Finish the bar; after an error, too, to leave the terminal clean for it."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    on_train_end = on_test_end = on_exception = close

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar over all optimizer steps."""
        total = trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)
        self._open(total, "fit", trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """One optimizer step is done."""
        metrics = trainer.callback_metrics
        first = {} if "train/reward" in metrics else {"train/loss": "loss"}  # where nothing is sampled
        shown = {label: f"{float(metrics[k]):.3g}" for k, label in {**first, **SHOWN}.items() if k in metrics}
        if signs := cast(HasPolicy, pl_module).alarms.collapse.current_signs:
            shown = {"COLLAPSED": "+".join(signs), **shown}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a bar over the test batches."""
        self._open(int(sum(trainer.num_test_batches)), "test")

    def on_test_batch_end(self, *args: Any) -> None:
        """One batch is answered."""
        self.bar.update()
