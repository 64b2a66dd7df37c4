"""compute_basis against torch.linalg.svd in fp32: seconds, and what each basis makes of the gradient of z.

    python benchmarks/run.py decomposition

Error: dz_i = sigma_i u_i^T G v_i for a random dense gradient G, with U and V (or P) as computed and everything else in
fp64, against an fp64 SVD; the largest deviation over the largest |dz_i|. Matrices have singular values that fall as
1 / i^0.7, as trained weights do roughly; a Gaussian one is shown alongside.
"""

from __future__ import annotations

import torch
from _common import DEVICE, Row, interleave
from torch import Tensor

from transformer2.svf.basis import compute_basis

SIZES = {(1792, 512): 9, (3584, 1024): 3, (7168, 2048): 1}  # rounds


def measure(toy: bool = False) -> list[Row]:
    rows = []
    for (long, short), rounds in ({(96, 32): 1} if toy else SIZES).items():
        for m, n in ((long, short), (short, long)):
            rows += _shape_rows(m, n, rounds)
    return rows


def _shape_rows(m: int, n: int, rounds: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    gaussian_mn = torch.randn(m, n, generator=generator)
    u_mR, _, vh_Rn = torch.linalg.svd(gaussian_mn.double(), full_matrices=False)
    decay_R = torch.arange(1, min(m, n) + 1).double() ** -0.7
    weight_mn = (u_mR * decay_R @ vh_Rn).float().to(DEVICE)
    gradient_mn = torch.randn(m, n, generator=generator).to(DEVICE)

    times = interleave(
        {
            "svd": lambda: torch.linalg.svd(weight_mn, full_matrices=False),
            "basis": lambda: compute_basis(weight_mn),
        },
        rounds,
        warmup=int(rounds > 3),
    )
    kind, limit = ("tall", 1.6) if m > n else ("wide", 3.0)
    note = f"{times.median('svd'):.2f} of {times.median('basis'):.2f} s"
    rows = [Row(f"{kind} {m} x {n}: svd / basis, seconds", times.ratio("svd", "basis"), at_least=limit, note=note)]
    if min(m, n) > 1024:
        return rows
    for name, matrix_mn in {"1 / i^0.7": weight_mn, "Gaussian": gaussian_mn.to(DEVICE)}.items():
        basis_error, svd_error = _errors(matrix_mn, gradient_mn)
        note = f"fp32 svd {svd_error:.0e}"
        rows.append(Row(f"{kind} {m} x {n}, {name}: error of dz", basis_error, unit="", at_most=5e-7, note=note))
    return rows


def _errors(weight_mn: Tensor, gradient_mn: Tensor) -> tuple[float, float]:
    """The error of dz under compute_basis and under an fp32 SVD."""
    u_mR = torch.linalg.svd(weight_mn.double(), full_matrices=False).U
    oracle_R = _dz(weight_mn, gradient_mn, u_mR, "out")
    basis = compute_basis(weight_mn)
    u32_mR, sigma32_R, vh32_Rn = (t.double() for t in torch.linalg.svd(weight_mn, full_matrices=False))
    svd_R = sigma32_R * (u32_mR * (gradient_mn.double() @ vh32_Rn.T)).sum(0)
    ours_R = _dz(weight_mn, gradient_mn, basis.vectors_RR.double(), basis.side)
    scale = float(oracle_R.abs().max())
    return float((ours_R - oracle_R).abs().max()) / scale, float((svd_R - oracle_R).abs().max()) / scale


def _dz(weight_mn: Tensor, gradient_mn: Tensor, vectors: Tensor, side: str) -> Tensor:
    """dz of W' = W P diag(z) P^T or P diag(z) P^T W at z = 1, from the vectors of one side alone."""
    weight_mn, gradient_mn = weight_mn.double(), gradient_mn.double()
    if side == "in":
        return ((weight_mn @ vectors) * (gradient_mn @ vectors)).sum(0)
    return ((weight_mn.T @ vectors) * (gradient_mn.T @ vectors)).sum(0)
