"""One optimizer step as a value: micro-batches add up to it, and so do ranks.

    step = sum over ranks and micro-batches of (rows, d loss / d z, sums of what is logged)

The loss of a part is divided by the rows of the whole global batch (rl/loss.py), so nothing is rescaled afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A step, or the part of it that one micro-batch is.

    Attributes:
        rows: Completions.
        gradient_Z: d loss / d z, fp32 (Z,).
        loss: The loss.
        finished: Rows that ended within the budget.
        tokens: Sampled tokens that the loss saw: not those of rows that it leaves out.
        entropy: Of the policy, nats summed over `tokens`, as are the three below.
        kl: To the base; NaN where it was not measured.
        mismatch: |log pi - log mu| of policy and sampler; NaN where the sampler did not say.
        capped: Tokens whose importance weight met the cap.
        sampled: All tokens that were sampled; of a whole step.
        abstained: Rows that the task would not judge; of a whole step.
        credit: Of the answers of a task with soft scores (`Verdict.score`), summed; NaN of others; of a whole step.
    """

    rows: float
    gradient_Z: Tensor
    loss: float
    finished: float
    tokens: float
    entropy: float
    kl: float
    mismatch: float
    capped: float
    sampled: float = 0.0
    abstained: float = 0.0
    credit: float = 0.0

    def __add__(self, other: Step) -> Step:
        return Step(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def per_token(self, total: float) -> float:
        """A sum over tokens as a mean; NaN for none."""
        return total / self.tokens if self.tokens else float("nan")

    def over_ranks(self, add: Callable[[Tensor], Tensor]) -> Step:
        """The step of all ranks.

        Args:
            add: Sums a tensor over ranks.
        """
        names = [f.name for f in fields(self) if f.name != "gradient_Z"]
        sums = torch.tensor([getattr(self, name) for name in names], device=self.gradient_Z.device)
        return Step(gradient_Z=add(self.gradient_Z), **dict(zip(names, add(sums).tolist(), strict=True)))
