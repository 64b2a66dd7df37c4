"""Natural-gradient descent on z as an optimizer, and the rows' gradients that it takes (rl/natural.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from transformer2.svf.layer import svf_layers

__all__ = ["NaturalGradient", "damping_of", "row_gradients", "rows_of_z"]

NAME = "NaturalGradient"


class NaturalGradient(torch.optim.SGD):
    """SGD along the natural gradient of z: SVF alone, which has the rows' gradients for nothing.

    The gradients that it is handed are natural ones already: the module divides a step's gradient by the Fisher
    information, before any strategy gets it, so that parameters in shards are no matter.

    Args:
        params: z of every matrix.
        lr: 1 changes the log-probability of a completion by its advantage, as far as damping lets it.
        damping: Of the Fisher information, as a share of a row's mean; more makes shorter steps.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0, damping: float = 0.3) -> None:
        super().__init__(params, lr=lr)
        self.defaults["damping"] = damping
        for group in self.param_groups:
            group.setdefault("damping", damping)


def damping_of(rate: Mapping[str, Any]) -> float | None:
    """The damping that a module's settings ask for (`optimizers.settings`); None of any other optimizer."""
    return float(rate["model.optimizer.damping"]) if rate["model.optimizer"] == NAME else None


def rows_of_z(policy: torch.nn.Module, rows: int) -> dict[Any, Tensor]:
    """For `Rows`: z - 1 of each layer as it is, once for each row, (B, r), ready to take gradients."""
    return {
        layer: layer.detached_delta(layer.active_adapters).expand(rows, -1).clone().requires_grad_()
        for _, layer in svf_layers(policy)
    }


def row_gradients(total: Tensor, deltas: Sequence[Tensor], again: bool = False) -> Tensor:
    """d total / d z of every row, fp32 (B, Z), flat in the order of the layers.

    Args:
        total: A scalar, computed under `deltas`.
        deltas: What `rows_of_z` gave.
        again: Keep the graph for another call.
    """
    parts = torch.autograd.grad(total, deltas, retain_graph=again, allow_unused=True)
    pairs = zip(parts, deltas, strict=True)
    return torch.cat([torch.zeros_like(d) if g is None else g.float() for g, d in pairs], dim=1)
