"""compute_basis on the device against torch.linalg.svd in fp32: seconds, and whether the basis is one.

W is bf16 with singular values that fall as 1 / i^0.7, as trained weights do roughly. cuSOLVER's SVD of the whole shapes
may take longer than the part has: it comes last, after a quarter of the size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _common import DEVICE, Row, free_memory, interleave
from _llama8b import DTYPE, HIDDEN, INTERMEDIATE
from torch import Tensor

from transformer2.svf.basis import basis_error, compute_basis

TARGETS = {"tall": 1.6, "wide": 3.0}
SMALLER = 2  # by which the first comparison's sides are divided
WHOLE_SET = {"tall": 64, "wide": 32}  # gate and up, down, of 32 layers
EXACT = 1e-5  # an fp32 basis is at about 1e-6


def planned(toy: bool) -> dict[str, Row]:
    rows = {}
    for kind, (m, n) in _shapes(toy, SMALLER).items():
        rows[f"{kind} smaller"] = Row(f"{kind} {m} x {n}: svd / basis, seconds", None, at_least=TARGETS[kind])
    for kind, (m, n) in _shapes(toy).items():
        rows[f"{kind} basis"] = Row(f"{kind} {m} x {n}: basis, seconds", None, "s")
        rows[f"{kind} error"] = Row(f"{kind} {m} x {n}: orthogonality and Gram error", None, "", at_most=EXACT)
    rows["set"] = Row("MLP of 32 layers: bases, seconds, extrapolated", None, "s")
    for kind, (m, n) in _shapes(toy).items():
        rows[kind] = Row(f"{kind} {m} x {n}: svd / basis, seconds", None, at_least=TARGETS[kind])
    return rows


def measure(toy: bool) -> Iterator[tuple[str, float, str]]:
    for kind, (m, n) in _shapes(toy, SMALLER).items():
        yield f"{kind} smaller", *_against_svd(_weight(m, n), _basis_seconds(_weight(m, n), toy))
    seconds = {}
    for kind, (m, n) in _shapes(toy).items():
        weight_mn = _weight(m, n)
        seconds[kind] = _basis_seconds(weight_mn, toy)
        yield f"{kind} basis", seconds[kind], "fp64 Gram and eigh, bf16 weight"
        orthogonality, gram = basis_error(compute_basis(weight_mn), weight_mn)
        assert gram is not None
        yield f"{kind} error", max(orthogonality, gram), f"{orthogonality:.0e} and {gram:.0e}, 8 columns"
    whole = sum(count * seconds[kind] for kind, count in WHOLE_SET.items())
    parts = ", ".join(f"{count} x {seconds[kind]:.2f} s {kind}" for kind, count in WHOLE_SET.items())
    yield "set", whole, f"{parts}, one of each measured; reading the weights is not in it"
    for kind, (m, n) in _shapes(toy).items():
        free_memory()
        yield kind, *_against_svd(_weight(m, n), seconds[kind])


def _shapes(toy: bool, smaller: int = 1) -> dict[str, tuple[int, int]]:
    divisor = smaller * (64 if toy else 1)
    long, short = INTERMEDIATE // divisor, HIDDEN // divisor
    return {"tall": (long, short), "wide": (short, long)}


def _weight(m: int, n: int) -> Tensor:
    torch.manual_seed(0)
    r = min(m, n)
    u_mR, v_nR = (torch.linalg.qr(torch.randn(size, r, device=DEVICE))[0] for size in (m, n))
    decay_R = torch.arange(1, r + 1, device=DEVICE) ** -0.7
    return (u_mR * decay_R @ v_nR.T).to(DTYPE)


def _basis_seconds(weight_mn: Tensor, toy: bool) -> float:
    run = {"basis": lambda: compute_basis(weight_mn)}
    return interleave(run, rounds=1 if toy else 2, warmup=1).median("basis")


def _against_svd(weight_mn: Tensor, basis_seconds: float) -> tuple[float, str]:
    """How many times as long one SVD takes, with the absolute figures."""
    weight_mn = weight_mn.float()
    # A small one first: it loads the library and makes its handles.
    torch.linalg.svd(weight_mn[:64, :64])
    svd = interleave({"svd": lambda: torch.linalg.svd(weight_mn, full_matrices=False)}, rounds=1, warmup=0)
    return svd.median("svd") / basis_seconds, f"{svd.median('svd'):.2f} of {basis_seconds:.2f} s"
