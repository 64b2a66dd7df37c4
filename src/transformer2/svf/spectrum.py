"""How a spectrum is spread: the share of the top r singular values, and the rank that holds a share (Figures 10, 11).

sum             sum_{i <= r} sigma_i / sum_i sigma_i
sum_of_squares  the same of sigma_i^2: how much of ||W||_F^2 the best approximation of rank r keeps (Eckart-Young)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transformer2.svf.format import layer_of, module_kind

__all__ = ["SHARES", "matrix_facts"]

SHARES = (50, 90, 99)  # per cent


def matrix_facts(module: str, sigma_R: Tensor) -> dict[str, Any]:
    """What report.json says of one matrix, as plain values.

    Args:
        module: Its path.
        sigma_R: fp64 (r,), decreasing.

    Returns:
        module, layer (None outside of one), kind, rank r, largest sigma; for `sum` and `sum_of_squares` the share of
        the top 1, 2, 4, ... r, and the smallest rank that holds 50, 90 and 99 %.
    """
    r = sigma_R.numel()
    tops = sorted({*(2**k for k in range(r.bit_length())), r})
    facts: dict[str, Any] = {"module": module, "layer": layer_of(module), "kind": module_kind(module)}
    facts |= {"rank": r, "largest": float(sigma_R[0])}
    for name, values_R in (("sum", sigma_R), ("sum_of_squares", sigma_R.square())):
        total = float(values_R.sum())
        # Of a matrix of zeros every direction holds as much as any other.
        part_R = values_R.cumsum(0) / total if total else torch.arange(1, r + 1, dtype=torch.float64) / r
        enough = [int((part_R < share / 100 - 1e-12).sum()) + 1 for share in SHARES]
        facts[name] = {str(top): round(float(part_R[top - 1]), 6) for top in tops}
        facts[f"rank_of_{name}"] = {str(share): rank for share, rank in zip(SHARES, enough, strict=True)}
    return facts
