"""What TensorBoard shows alongside the curves: histograms of z, samples as text."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from transformer2.callbacks.protocols import HasPolicy, NeedsPolicy
from transformer2.svf.format import module_path
from transformer2.svf.layer import svf_layers
from transformer2.types import Answer, Example

NUM_SAMPLES = 4  # answers shown


class Monitoring(NeedsPolicy):
    """Logs `z/<layer>` histograms and `samples` at every validation."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write histograms and samples."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        module, step = cast(HasPolicy, pl_module), trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, delta in z_by_layer(module.policy).items():
                    logger.experiment.add_histogram(f"z/{name}", 1 + delta, step)
                if module.validated:
                    logger.experiment.add_text("samples", samples_table(module.validated), step)


def z_by_layer(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Effective z - 1 of the trained adapter by module path; empty for adapters other than SVF."""
    deltas = ((name, layer.delta(["default"])) for name, layer in svf_layers(policy))
    return {module_path(name): d.detach() for name, d in deltas if d is not None}


def samples_table(answered: Iterable[tuple[Example, Answer]]) -> str:
    """A Markdown table of the first answers."""
    rows: list[Any] = ["| question | answer | gold | verdict |", "|---|---|---|---|"]
    for example, answer in islice(answered, NUM_SAMPLES):
        cells = (example.question, answer.completion, example.answer, answer.verdict.reason)
        rows.append("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", "<br>") for c in cells) + " |")
    return "\n".join(rows)
