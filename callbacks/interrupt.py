"""Ctrl-C and SIGTERM end the run after the step in progress, with a checkpoint that resumes."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L


class GracefulStop(L.Callback):
    """The first signal asks for the end, the second one forces it.

    Attributes:
        signal_name: `SIGINT` or `SIGTERM` once one has come, else empty.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._asked)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name:
            raise KeyboardInterrupt(self.signal_name)
        self.signal_name = signal.Signals(number).name

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """The step is whole: save and stop, all ranks after the same step though the signal came to each at its own."""
        asked = trainer.strategy.reduce_boolean_decision(bool(self.signal_name), all=False)
        if asked and not trainer.should_stop:
            self.signal_name = self.signal_name or signal.SIGTERM.name
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            trainer.should_stop = True

    def on_train_end(self, *args: Any) -> None:
        """Stop listening."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def on_exception(self, *args: Any) -> None:
        """Stop listening."""
        self.on_train_end()
