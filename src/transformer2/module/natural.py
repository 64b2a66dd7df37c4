"""Natural-gradient descent on z as an optimizer, and one z per row for the gradients that it takes (rl/natural.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from transformer2.svf.layer import svf_layers

__all__ = ["NaturalGradient", "damping_of", "rows_of_z"]


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


def damping_of(optimizer: OptimizerCallable) -> float | None:
    """The damping of the NaturalGradient that is built; None where another optimizer is."""
    built = optimizer([torch.nn.Parameter(torch.zeros(1))])
    return built.defaults["damping"] if isinstance(built, NaturalGradient) else None


def rows_of_z(policy: torch.nn.Module, rows: int) -> dict[Any, Tensor]:
    """For `Rows`: z - 1 of each layer as it is, once for each row, (B, r), ready to take gradients."""
    return {
        layer: layer.detached_delta(layer.active_adapters).expand(rows, -1).clone().requires_grad_()
        for _, layer in svf_layers(policy)
    }
