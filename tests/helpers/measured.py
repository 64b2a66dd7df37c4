"""Peak tensor bytes of a real training step on the CPU, and what the planner says of it.

Completions run to their budget (no token ends them), which is what the planner counts with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from transformer2.cli.plan import complete
from transformer2.data import ExpertDataModule
from transformer2.module import SVFReinforceModule
from transformer2.plan.job import job_of
from transformer2.plan.memory import Memory, memory
from transformer2.types import PromptBatch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from _common import peak_bytes

NEVER = 10**6


class Measured(SVFReinforceModule):
    """The module itself; `resident` and `peak` are bytes of its last step."""

    resident = peak = 0

    def configure_model(self) -> None:
        super().configure_model()
        self.engine.eos_ids = [NEVER]

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        tensors = [*self.policy.parameters(), *self.policy.buffers()]
        tensors += [module._sigma_R for module in self.modules() if hasattr(module, "_sigma_R")]
        plain = [part for tensor in tensors for part in inner_tensors(tensor)]
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain}
        self.resident = sum(held.values())
        self.peak = self.resident + peak_bytes(lambda: super(Measured, self).training_step(prompts, batch_idx))


def inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What a tensor is made of: itself, or the codes and scales of one that torchao packed."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [getattr(tensor, name) for name in flatten()[0]] if flatten else [tensor]


def measured_and_planned(folder: Path, model: dict[str, Any], data: dict[str, Any]) -> tuple[Measured, Memory]:
    """One real step, and the plan for the prompts that it drew."""
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=1, limit_val_batches=0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    module, datamodule = Measured(**model), ExpertDataModule(**data, eval_batch_size=1)
    trainer.fit(module, datamodule)
    prompts = next(iter(datamodule.train_dataloader()))
    longest = int(prompts.attention_mask_BP.sum(-1).max())
    sections = complete(SVFReinforceModule, model), complete(ExpertDataModule, data) | {"eval_batch_size": 1}
    return module, memory(job_of(*sections, prompt_tokens=longest))


def small_model(folder: Path, dtype: torch.dtype, layers: int = 4, qwen: bool = False) -> str:
    """A folder with a random Llama or Qwen2 of 8B-like proportions."""
    from fakes import byte_tokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    torch.manual_seed(0)
    config = (Qwen2Config if qwen else LlamaConfig)(
        vocab_size=1024, hidden_size=128, intermediate_size=352, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=0, eos_token_id=[1, 4],
        tie_word_embeddings=qwen,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)
