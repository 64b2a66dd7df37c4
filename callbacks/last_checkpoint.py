"""`checkpoints/last.ckpt`: the state between two steps, from which a run continues bit for bit.

What is trained is small, so the state is packed after every step and held in memory: a signal writes it at once,
however long the step in progress takes. Beside that it is written whenever the time since the last write is twenty
times what that write took, so `kill -9` costs some steps of a small model and none of a large one. A finished step
whose validation is still to come is kept as a state, too: it resumes with the validation.

Lightning restores one kind of checkpoint faithfully: one taken in `on_train_batch_end` where no validation follows, or
within a validation. `_settle` turns all of ours into one of these.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities import rank_zero_warn

from transformer2.callbacks import interrupt
from transformer2.checkpoints import pack, read_checkpoint, write_checkpoint
from transformer2.distributed import ZeRO
from transformer2.errors import CheckpointError
from transformer2.files import LAST, PREVIOUS

__all__ = ["LastCheckpoint", "SealedFiles"]

SHARE = 20  # a twentieth of the time, at most, goes into writing


class SealedFiles(CheckpointIO):
    """Checkpoints as files that are whole or absent, carry their checksum, and load without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Callable[[bytes], None] | None = None
    ) -> None:
        """Write a checkpoint, or hand its bytes to `storage_options` instead."""
        data = pack(checkpoint)
        if storage_options is None:
            write_checkpoint(data, path)
        else:
            storage_options(data)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            CheckpointError: It is missing, damaged, foreign, or could run code.
        """
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint file."""
        Path(path).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run folder, and the one before it as `previous.ckpt`.

    Under ZeRO, whose checkpoints take all ranks, nothing is held in memory: a signal leaves what was written last.
    """

    def __init__(self) -> None:
        self.path: Path | None = None  # once there is a checkpoint, on the disk or held
        self._held: bytes | None = None  # not written yet
        self._where = ""
        self._took, self._written = 0.0, 0.0
        self._lock = threading.Lock()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checkpoints are read and written our way."""
        if not isinstance(trainer.strategy, ZeRO):
            trainer.strategy.checkpoint_io = SealedFiles()

    # ------------------------------------------------------------------ when

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The last step is whole, and so is the validation that it may have called for."""
        if trainer.global_step:
            self._take(trainer, "step")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step is whole. (Lightning would not go back to the validation of a run that has all its steps.)"""
        self.on_train_start(trainer, pl_module)
        done = 0 <= trainer.max_steps <= trainer.global_step
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not done:
            self._take(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Also the end of the run. Where epochs are counted, Lightning continues from here by itself."""
        self._take(trainer, "end" if trainer.max_steps == -1 else "epoch")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing stays in memory only."""
        self.write()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Nothing stays in memory only."""
        if not isinstance(exception, CheckpointError):
            self.write()

    # ------------------------------------------------------------------ how

    def _take(self, trainer: L.Trainer, where: str) -> None:
        path = Path(trainer.default_root_dir) / LAST
        self._where = where
        if not isinstance(trainer.strategy, ZeRO):
            trainer.save_checkpoint(path, storage_options=self._hold)
            self.path = path
            if self._due():
                self.write()
        elif trainer.strategy.broadcast(self._due() or where in ("epoch", "end")):
            start = time.monotonic()
            trainer.save_checkpoint(path)
            self.path = path
            self._written = time.monotonic()
            self._took = self._written - start
        self._where = ""

    def _hold(self, data: bytes) -> None:
        self._held = data

    def _due(self) -> bool:
        return time.monotonic() - self._written >= SHARE * self._took

    def write(self) -> None:
        """Put what is held on the disk; in a signal's thread, or the trainer's.

        Raises:
            CheckpointError: It cannot be written.
        """
        with self._lock:
            if self._held is None or self.path is None:
                return
            start, beside = time.monotonic(), self.path.with_name(f".previous.{os.getpid()}")
            with suppress(OSError):  # not all file systems have links
                os.link(self.path, beside)
            write_checkpoint(self._held, self.path)
            self._held = None
            with suppress(OSError):
                os.replace(beside, self.path.with_name(PREVIOUS.name))
            self._written = time.monotonic()
            self._took = self._written - start

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the loops' progress so that Lightning resumes from it exactly."""
        if self._where:
            _settle(checkpoint["loops"]["fit_loop"], self._where)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run that its EarlyStopping ended is over; without that callback it resumes."""
        states = checkpoint.get("callbacks", {})
        early = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
        if trainer.state.fn == "fit" and any(states.get(c.state_key, {}).get("stopping_reason") for c in early):
            rank_zero_warn("this run was stopped early; to train on, leave EarlyStopping out of trainer.callbacks")
            trainer.should_stop = True

    # ------------------------------------------------------------------ signals

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's handler of SIGTERM, set just before, would broadcast among ranks that may be anywhere."""
        if (listener := interrupt.current()) is not None:
            listener.install_handlers()

    on_test_start = on_train_start


def _settle(fit: dict[str, Any], where: str) -> None:
    """The progress of the fit loop, edited in place.

    Args:
        fit: State of the loops: counters of batches that were made `ready`, `started`, `processed` and `completed`.
        where: `step`, with the next batch already fetched; `validation`, before it; `epoch`, at its end; `end` as is.
    """
    if where == "end":
        return
    train, val = fit["epoch_loop.batch_progress"], fit["epoch_loop.val_loop.batch_progress"]
    if where == "validation":  # as if its first batch had been begun
        for counters, done in ((val["total"], val["total"]["completed"]), (val["current"], 0)):
            counters |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        return
    if where == "step":
        for loader in fit["state_dict"].get("combined_loader", []):
            if "batches_seen" in loader:
                loader["batches_seen"] -= 1
    else:  # the last epoch may have ended before its last batch: then it continues in a longer run
        for counters in fit["epoch_progress"]["total"], fit["epoch_progress"]["current"]:
            if train["is_last_batch"]:
                counters["completed"] += 1
            else:
                counters["processed"] -= 1
    for counters in train["total"], train["current"]:  # as in on_train_batch_end
        counters["ready"] = counters["processed"]
        counters["completed"] -= 1
    train["is_last_batch"] = False
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    val["total"] |= dict.fromkeys(("ready", "started", "processed"), val["total"]["completed"])
