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
        scores_BZ: d log pi / d z of each row, fp32 (B, Z), for the natural gradient; else None.
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
    scores_BZ: Tensor | None = None

    def __add__(self, other: Step) -> Step:
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("gradient_Z", *self._numbers())}
        both = [part.scores_BZ for part in (self, other) if part.scores_BZ is not None]
        return Step(**sums, scores_BZ=torch.cat(both) if both else None)

    def per_token(self, total: float) -> float:
        """A sum over tokens as a mean; NaN for none."""
        return total / self.tokens if self.tokens else float("nan")

    @classmethod
    def _numbers(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name not in ("gradient_Z", "scores_BZ")]

    def over_ranks(self, add: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]) -> Step:
        """The step of all ranks.

        Args:
            add: Sums a tensor over ranks.
            gather: Stacks a tensor of all ranks along a new first axis; one process may leave that out.
        """
        names = self._numbers()
        sums = torch.tensor([getattr(self, name) for name in names], device=self.gradient_Z.device)
        scores_BZ = None if self.scores_BZ is None else gather(self.scores_BZ).reshape(-1, self.scores_BZ.shape[-1])
        numbers = dict(zip(names, add(sums).tolist(), strict=True))
        return Step(gradient_Z=add(self.gradient_Z), scores_BZ=scores_BZ, **numbers)
