"""The side basis of a weight matrix: the one r x r orthogonal matrix that SVF needs in addition to W.

    W (m x n) = U diag(sigma) V^T,  r = min(m, n)
    n <= m ("in"):   P = V,  W' = U diag(sigma z) V^T = W P diag(z) P^T
    m <  n ("out"):  P = U,  W' = U diag(sigma z) V^T = P diag(z) P^T W

Source: Transformer-Squared (arXiv 2501.06252), section 3, for SVF. Departures from the paper and from the reference
code:

1. Only the factor of the smaller side is computed and kept (r^2 numbers instead of r (m + n)); the other one is W P /
   sigma.
2. P comes from the fp64 Gram matrix of the smaller side, not from an fp32 SVD: faster, and about 1e3 times more
   accurate where it matters (directions with close singular values). An fp32 eigh of the Gram matrix fails on heavy
   tails.
3. sigma_i = ||W p_i||. Where the eigenvalue is above 1e-6 of the largest its square root is the same to 1e-9; below,
   the root turns to rounding noise, and the norm is computed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from transformer2.errors import BasisError

__all__ = ["Basis", "Side", "basis_error", "compute_basis", "singular_values"]

Side = Literal["in", "out"]

# Rows (or columns) of W that are held in fp64 at a time: 4096 x 8192 fp64 is 256 MiB.
_CHUNK = 4096
_SAMPLED = 8  # columns of P that a check looks at, others every time
_EXACT = 1e-6  # share of the largest eigenvalue above which an fp64 eigenvalue is exact to 1e-9


@dataclass(frozen=True)
class Basis:
    """Singular directions of the smaller side of W, with the singular values.

    Attributes:
        side: "in" when n <= m and P holds the right singular vectors; "out" when m < n and P holds the left ones.
        vectors_RR: fp32 (r, r), contiguous; column i is the direction of the i-th largest singular value.
        sigma_R: fp32 (r,), decreasing.
    """

    side: Side
    vectors_RR: Tensor
    sigma_R: Tensor

    def to(self, device: torch.device | str) -> Basis:
        """The same basis with its tensors on `device`."""
        return Basis(self.side, self.vectors_RR.to(device), self.sigma_R.to(device))


def compute_basis(weight_mn: Tensor) -> Basis:
    """The side basis of W, computed in fp64 on the device of W (on the CPU where the device has no fp64).

    Signs are fixed (the entry of largest magnitude of each column is positive), so a rebuilt basis is the same one.

    Args:
        weight_mn: (m, n), any floating dtype, rows = outputs.

    Returns:
        The basis, fp32, on the device of `weight_mn`. A rank-deficient W keeps an orthogonal P; its last sigma are ~0.

    Raises:
        BasisError: Not a floating 2-D matrix, empty, on the meta device, with non-finite entries, or
            beyond the range of fp32.
    """
    device = weight_mn.device
    tall_LR, side = _tall(weight_mn)
    try:
        square_R, vectors_RR = torch.linalg.eigh(_gram(tall_LR), UPLO="U")
    except torch.linalg.LinAlgError as e:
        r = tall_LR.shape[1]
        raise BasisError(f"the eigenvectors of a {r} x {r} Gram matrix did not converge: {e}") from e

    # eigh orders increasingly: the first `small` eigenvalues have lost more than fp32 can notice, and are measured.
    small = int((square_R <= _EXACT * square_R[-1]).sum())
    square_R[:small] = 0
    for chunk_CR in tall_LR.split(_CHUNK) if small else ():
        square_R[:small] += (chunk_CR.double() @ vectors_RR[:, :small]).square().sum(0)
    # At the noise floor ||W p|| may order them differently.
    sigma_R, order_R = square_R.sqrt().sort(descending=True, stable=True)
    if not bool(torch.isfinite(sigma_R.float()).all()):
        raise BasisError(f"the largest singular value, {float(sigma_R[0]):.1e}, is beyond fp32; scale the weight down")
    vectors_RR = vectors_RR[:, order_R]
    largest_R = vectors_RR.gather(0, vectors_RR.abs().argmax(0, keepdim=True))[0]
    vectors_RR = vectors_RR * torch.where(largest_R < 0, -1.0, 1.0)
    # linalg outputs are column-major; broadcasts and safetensors want row-major.
    return Basis(side, vectors_RR.float().contiguous(), sigma_R.float().contiguous()).to(device)


def singular_values(weight_mn: Tensor) -> Tensor:
    """sigma of W, fp64 (r,), decreasing, on the CPU: without the directions, a third of the work of `compute_basis`.

    Right to 1e-8 of the largest one, the root of what fp64 keeps of the Gram matrix.

    Args:
        weight_mn: (m, n), any floating dtype, rows = outputs.

    Raises:
        BasisError: As `compute_basis`.
    """
    tall_LR, _ = _tall(weight_mn)
    try:
        square_R = torch.linalg.eigvalsh(_gram(tall_LR), UPLO="U")
    except torch.linalg.LinAlgError as e:
        r = tall_LR.shape[1]
        raise BasisError(f"the eigenvalues of a {r} x {r} Gram matrix did not converge: {e}") from e
    return square_R.clamp(min=0).sqrt().flip(0).cpu()


def _tall(weight_mn: Tensor) -> tuple[Tensor, Side]:
    """W or its transpose (a view) with rows that run over the long side, (L, r), and the side of the basis."""
    if weight_mn.ndim != 2 or weight_mn.numel() == 0 or not weight_mn.is_floating_point() or weight_mn.is_meta:
        raise BasisError(
            f"a basis needs a non-empty floating 2-D matrix with its values, got {tuple(weight_mn.shape)} "
            f"{weight_mn.dtype} on {weight_mn.device}; dequantise or gather the weight first"
        )
    weight_mn = weight_mn.detach()
    if weight_mn.device.type == "mps":  # Apple GPUs have no fp64
        weight_mn = weight_mn.cpu()
    return (weight_mn, "in") if weight_mn.shape[1] <= weight_mn.shape[0] else (weight_mn.T, "out")


def _gram(tall_LR: Tensor) -> Tensor:
    """The upper triangle of the Gram matrix, fp64 (r, r)."""
    r = tall_LR.shape[1]
    gram_RR = torch.zeros(r, r, dtype=torch.float64, device=tall_LR.device)
    # The upper triangle is enough for eigh: 5/8 of the arithmetic in four column blocks.
    starts = range(0, r, max(r // 4, 1))
    for chunk_CR in tall_LR.split(_CHUNK):
        chunk64_CR = chunk_CR.double()
        for i in starts:
            rows = slice(i, i + starts.step)
            gram_RR[rows, i:].addmm_(chunk64_CR[:, rows].T, chunk64_CR[:, i:])
    if not bool(torch.isfinite(gram_RR).all()):
        bad = int((~torch.isfinite(tall_LR)).sum())
        raise BasisError(f"the weight {tuple(tall_LR.shape)} has {bad} non-finite entries; the checkpoint is damaged")
    return gram_RR


def basis_error(basis: Basis, weight_mn: Tensor | None = None) -> tuple[float, float | None]:
    """How far a sample of columns of P is from what it should be: (orthogonality error, reconstruction error).

    The first is max |P^T P - I| over the sampled columns and needs no weight. W P P^T = W for every orthogonal P, so
    the second checks what a wrong P breaks: G p_i = sigma_i^2 p_i with G the Gram matrix of W, relative to sigma_1^2.

    Args:
        basis: The basis to check.
        weight_mn: (m, n), the matrix it belongs to; None leaves the second figure out.

    Raises:
        BasisError: `weight_mn` has another shape than the basis, or no values.
    """
    r = basis.sigma_R.numel()
    # The system's randomness: drawing from torch's or Python's generator would move a run's random numbers.
    sample_S = torch.tensor(random.SystemRandom().sample(range(r), min(_SAMPLED, r)), device=basis.sigma_R.device)
    picked_RS = basis.vectors_RR[:, sample_S]
    overlap_RS = basis.vectors_RR.T @ picked_RS
    overlap_RS[sample_S, torch.arange(len(sample_S), device=sample_S.device)] -= 1
    orthogonality = float(overlap_RS.abs().max())
    if weight_mn is None:
        return orthogonality, None

    tall_LR, side = _tall(weight_mn)
    if (side, tall_LR.shape[1]) != (basis.side, r):
        shape = tuple(weight_mn.shape)
        raise BasisError(f"a basis of side {basis.side!r} and size {r} does not belong to a weight of shape {shape}")
    picked_RS, sigma_S = (t.to(tall_LR.device).double() for t in (picked_RS, basis.sigma_R[sample_S]))
    gram_RS = torch.zeros_like(picked_RS)
    for chunk_CR in tall_LR.split(_CHUNK):
        chunk64_CR = chunk_CR.double()
        gram_RS.addmm_(chunk64_CR.T, chunk64_CR @ picked_RS)
    scale = max(float(basis.sigma_R.max()) ** 2, torch.finfo(torch.float64).tiny)
    return orthogonality, float((gram_RS - picked_RS * sigma_S.square()).abs().max()) / scale
