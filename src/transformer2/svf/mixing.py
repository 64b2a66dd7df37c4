"""What mixing weights mean. Pure functions of named tensors.

    delta        z' = 1 + sum_k a_k (z_k - 1)        zeros are the base model
    normalised   the same with a / sum(a)
    raw          z' = sum_k a_k z_k                  the paper's z' = sum_k alpha_k z_k (arXiv 2501.06252, section 3.2)

K experts; X stands for any leading axes of the weights: none, rows, or matrices x mixtures.

Departures from the reference code: no division by the sum unless asked for, and a sum of zero then gives no finite
weights, which everybody who mixes refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from transformer2.arguments import check_weights
from transformer2.errors import UserError

__all__ = ["MIXES", "Mix", "mix_deltas", "mixing_weights", "normalised"]

Mix = Literal["delta", "normalised", "raw"]
MIXES: tuple[Mix, ...] = get_args(Mix)


def mix_deltas(weights_XK: Tensor, deltas: Sequence[Tensor], mix: str) -> Tensor:
    """z' - 1 (X..., r) of mixtures of K vectors z_k - 1 (r,), where those are and in their dtype.

    Args:
        weights_XK: Normalised already where that is wanted.
        deltas: K vectors, zeros for an expert that does not tune this matrix.
        mix: Everything but "raw" means "delta".
    """
    weights_XK = weights_XK.to(deltas[0])
    # Not a matrix product: it may run in TF32, and then an expert alone would not be that expert to the bit.
    mixed_XR: Tensor = sum(weights_XK[..., k, None] * delta_R for k, delta_R in enumerate(deltas))  # type: ignore[assignment]
    return mixed_XR + (weights_XK.sum(-1, keepdim=True) - 1) if mix == "raw" else mixed_XR


def normalised(weights_XK: Tensor) -> Tensor:
    """Weights that sum to one; NaN where their sum is zero."""
    total_X1 = weights_XK.sum(-1, keepdim=True)
    return torch.where(total_X1.abs() < 1e-6, torch.nan, weights_XK / total_X1)


def mixing_weights(weights: Sequence[float], count: int, mix: str) -> Tensor:
    """K checked weights, fp64; normalised where `mix` says so, and "delta" weights then.

    Raises:
        UserError: Unknown mix, a count that is not K, weights beyond -100 to 100, or a zero sum to divide by.
    """
    if mix not in MIXES:
        raise UserError(f"mix={mix!r} is not one of {', '.join(MIXES)}")
    values = [float(w) for w in weights]
    check_weights(values, count, mix)
    weights_K = torch.tensor(values, dtype=torch.float64)
    return normalised(weights_K) if mix == "normalised" else weights_K
