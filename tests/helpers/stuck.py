"""A callback whose main thread is in one long call of C code, as a large backward pass is: no Python runs meanwhile."""

from pathlib import Path

import lightning as L
import torch

from transformer2.adaptation import evaluate


class Stuck(L.Callback):
    """Stuck in a hook, in the step after `step`; leaves a file when it begins.

    Args:
        hook: Name of the hook, or `evaluate_batch`: the first batch of an adaptation.
        marker: The file.
        step: Steps to let pass.
    """

    def __init__(self, hook: str, marker: str, step: int = 0) -> None:
        self.marker, self.step = Path(marker), step
        if hook == "evaluate_batch":
            evaluate.evaluate_batch = self.hang
        else:
            setattr(self, hook, self.wait)

    def wait(self, trainer, *args, **kwargs):
        if trainer.global_step >= self.step:
            self.hang()

    def hang(self, *args, **kwargs):
        self.marker.touch()
        torch.linalg.svd(torch.randn(6000, 6000))
