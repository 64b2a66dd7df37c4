"""The gradient of z as one flat vector, from micro-batches to the optimizer.

    g = sum over micro-batches and ranks of d loss / d z

An expert is 0.1 to 2 million numbers, so its gradient is summed over ranks once a step, in one piece, whatever engine
holds the model. `loss.backward()` would start the engines' own reductions at every micro-batch, and ranks that were
dealt different completions have different numbers of those: they would wait for each other for ever
(docs/adr/0005-one-gradient-for-all-engines.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_of(loss: Tensor, parameters: Sequence[Tensor], by_row: bool = False, again: bool = False) -> Tensor:
    """d loss / d parameters, fp32 (Z,), flat in their order; 0 where the loss does not depend on one.

    Nothing is left in `.grad`, and no hook on it runs.

    Args:
        loss: A scalar.
        parameters: What it was computed from.
        by_row: The first axis of each parameter is the batch's, and stays: fp32 (B, Z).
        again: Keep the graph for another call.
    """
    axis = int(by_row)
    parts = torch.autograd.grad(loss, parameters, retain_graph=again, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, parameters, strict=True)]
    return torch.cat([g.float().flatten(axis) for g in whole], dim=axis)


def clipped(gradient_Z: Tensor, max_norm: float | None) -> tuple[Tensor, float]:
    """The gradient scaled to a norm of at most `max_norm` (None leaves it), and the norm it had before."""
    norm = float(gradient_Z.norm())
    return gradient_Z if max_norm is None else gradient_Z * min(1.0, max_norm / (norm + 1e-6)), norm


def with_gradient(parameters: Sequence[Tensor], gradient_Z: Tensor) -> Tensor:
    """A scalar whose gradient is exactly `gradient_Z`: how it is handed to an engine that wants a backward pass."""
    pieces = gradient_Z.split([p.numel() for p in parameters])
    return torch.stack(
        [(p * g.view_as(p).to(p.dtype)).sum().float() for p, g in zip(parameters, pieces, strict=True)]
    ).sum()
