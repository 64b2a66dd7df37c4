"""What TensorBoard shows beside the curves: histograms of z, samples as text."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from transformer2.arguments import NotNegativeInt, check_arguments
from transformer2.module import SVFReinforceModule
from transformer2.svf.layer import svf_layers
from transformer2.types import Rollouts, Verdict


class Monitoring(L.Callback):
    """Logs `z/<layer>` histograms and `samples` at every validation.

    Args:
        num_samples: Answers shown.
    """

    def __init__(self, num_samples: NotNegativeInt = 4) -> None:
        check_arguments("Monitoring", Monitoring.__init__, locals())
        self.num_samples = num_samples

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write histograms and samples."""
        assert isinstance(pl_module, SVFReinforceModule)
        if trainer.sanity_checking or trainer.state.fn != "fit" or not isinstance(trainer.logger, TensorBoardLogger):
            return
        board = trainer.logger.experiment
        for name, delta in z_by_layer(pl_module.policy).items():
            board.add_histogram(f"z/{name}", 1 + delta, trainer.global_step)
        if pl_module.last_answers is not None:
            board.add_text("samples", samples_table(*pl_module.last_answers, self.num_samples), trainer.global_step)


def z_by_layer(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Effective z - 1 of the trained adapter by module path; empty for adapters other than SVF."""
    deltas = ((name, layer.delta(["default"])) for name, layer in svf_layers(policy))
    return {name.removeprefix("base_model.model."): d.detach() for name, d in deltas if d is not None}


def samples_table(rollouts: Rollouts, verdicts: list[Verdict], count: int) -> str:
    """A Markdown table of the first answers."""
    rows: list[Any] = ["| question | answer | gold | verdict |", "|---|---|---|---|"]
    for example, text, verdict in list(zip(rollouts.examples, rollouts.completions, verdicts, strict=True))[:count]:
        cells = (example.messages[-1]["content"], text, example.answer, verdict.reason)
        rows.append("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", "<br>") for c in cells) + " |")
    return "\n".join(rows)
