"""How a spectrum is spread, and how far an expert's z moved along it.

Of a matrix, the share of its top r singular values, and the rank that holds a share (Figures 10 and 11 of the paper):

sum             sum_{i <= r} sigma_i / sum_i sigma_i
sum_of_squares  the same of sigma_i^2: how much of ||W||_F^2 the best approximation of rank r keeps (Eckart-Young)

Of an expert, by position in the spectrum ("RLVR moves off the principal directions", arXiv 2511.08567):

mean_abs   mean |z - 1| of the entries of a tenth of the indices, the largest singular values first
change     their share of ||W' - W||_F^2 = sum (sigma (z - 1))^2
weight     their share of ||W||_F^2 = sum sigma^2: what `change` would be if every z moved alike
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transformer2.errors import ExpertError
from transformer2.experts.folder import Expert
from transformer2.svf.format import layer_of, module_kind

__all__ = ["PARTS", "SHARES", "drift", "matrix_facts"]

PARTS = 10
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


def drift(expert: Expert, sigmas: Mapping[str, Tensor]) -> dict[str, dict[str, list[float | None]]]:
    """By kind of matrix, and of all: the three figures of every tenth of the indices; None where a matrix has fewer.

    Args:
        expert: The expert.
        sigmas: Module path -> sigma (r,) of its base, decreasing.

    Raises:
        ExpertError: A matrix that the base has not, or of another rank.
    """
    sums: dict[str, Tensor] = {}
    for module, delta_R in expert.deltas.items():
        sigma_R = sigmas.get(module)
        if sigma_R is None or sigma_R.numel() != delta_R.numel():
            has = "none" if sigma_R is None else f"{sigma_R.numel()}"
            raise ExpertError(
                f"expert {expert.name!r} has {delta_R.numel()} numbers for {module}, this base {has} singular values; "
                "give the base that it was trained on"
            )
        delta_R, sigma_R = delta_R.double(), sigma_R.double()
        part_R = torch.arange(delta_R.numel()) * PARTS // delta_R.numel()
        figures_4R = torch.stack([torch.ones_like(delta_R), delta_R.abs(), (sigma_R * delta_R) ** 2, sigma_R**2])
        found_4P = torch.zeros(4, PARTS, dtype=torch.float64).index_add_(1, part_R, figures_4R)
        for group in (module_kind(module), "all"):
            sums[group] = sums.get(group, torch.zeros_like(found_4P)) + found_4P
    return {group: _figures(sums[group]) for group in sorted(sums, key=lambda group: (group == "all", group))}


def _figures(sums_4P: Tensor) -> dict[str, list[float | None]]:
    count_P, moved_P, change_P, weight_P = sums_4P

    def of(values_P: Tensor) -> list[Any]:
        return [round(float(v), 6) if n else None for v, n in zip(values_P, count_P, strict=True)]

    tiny = torch.finfo(torch.float64).tiny
    return {
        "mean_abs": of(moved_P / count_P.clamp(min=1)),
        "change": of(change_P / change_P.sum().clamp(min=tiny)),
        "weight": of(weight_P / weight_P.sum().clamp(min=tiny)),
    }
