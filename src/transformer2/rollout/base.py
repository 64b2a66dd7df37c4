"""What every rollout engine offers, and how sampling is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from transformer2.errors import ConfigError
from transformer2.types import PromptBatch, Rollouts


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: 1 samples from the policy itself; 0 is greedy.
        top_p: Nucleus mass in (0, 1]. Training wants 1: the loss knows the full distribution only.
        max_new_tokens: Completion budget, EOS included.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ConfigError(f"{self} cannot be sampled: need temperature >= 0, 0 < top_p <= 1, max_new_tokens >= 1")


class RolloutEngine(Protocol):
    """Draws completions. Ids and masks in the result are what was sampled, EOS included."""

    def generate(self, policy: nn.Module, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
        """One completion per row, under the adapter (or z rows) active in `policy`.

        Args:
            policy: The model with its adapters (a PeftModel, or any transformers causal LM).
            prompts: B left-padded prompts.
            sampling: Temperature, nucleus and budget.
            seed: A row's randomness depends on (seed, its number over all ranks) only, not on the batch it is generated
                in: `uniforms`.
        """


def uniforms(prompts: PromptBatch, budget: int, seed: int) -> Tensor:
    """One number in [0, 1) for every row and token, (B, budget), on the CPU."""
    rows = list(prompts.row_ids or range(len(prompts)))
    return torch.rand((1 + max(rows), budget), generator=torch.Generator().manual_seed(seed))[rows]
