"""Peak tensor bytes of real training steps on the CPU, part of the proof that `plan` tells the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from _common import peak_bytes  # benchmarks/

from transformer2.data import ExpertDataModule
from transformer2.module import SVFReinforceModule
from transformer2.types import PromptBatch

NEVER = 10**6  # no token: completions run to their budget, which is what the planner counts with


class Measured(SVFReinforceModule):
    """The module itself, with the peak of every step's rollout and update beside what is resident."""

    peaks: list[dict[str, int]]

    def configure_model(self) -> None:
        super().configure_model()
        self.engine.eos_ids = [NEVER]

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        resident = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._resident()}
        self.peaks.append({"resident": sum(resident.values())})
        self.peaks[-1]["step"] = peak_bytes(lambda: super(Measured, self).training_step(prompts, batch_idx))

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        out: list[Any] = []
        if not self.nested:
            return super().sample(*args, **kwargs)
        peak = peak_bytes(lambda: out.append(super(Measured, self).sample(*args, **kwargs)))
        self.peaks[-1]["rollout"] = peak
        return out[0]

    nested = False

    def _resident(self) -> list[torch.Tensor]:
        states = [v for s in self.trainer.optimizers[0].state.values() for v in s.values() if torch.is_tensor(v)]
        sigmas = [m._sigma_R for m in self.modules() if hasattr(m, "_sigma_R")]
        return [*self.policy.parameters(), *self.policy.buffers(), *states, *sigmas]


def measure_step(folder: Path, data: dict[str, Any], steps: int = 2, **model: Any) -> tuple[Measured, ExpertDataModule]:
    """Run real steps without validation; their peaks are in `peaks`."""
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, limit_val_batches=0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    module = Measured(**model)
    module.peaks = []
    datamodule = ExpertDataModule(**data)
    trainer.fit(module, datamodule)
    return module, datamodule
