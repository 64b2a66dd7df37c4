"""The side basis against fp64 SVD: accuracy on easy and hard spectra, the gradient of z, odd and broken matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transformer2.errors import BasisError
from transformer2.svf.basis import basis_error, compute_basis

SHAPES = [(60, 40), (40, 60), (48, 48), (1, 30), (30, 1), (1, 1), (5000, 24), (24, 5000)]


def random(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_spectrum(m: int, n: int, sigma: Tensor) -> Tensor:
    r = min(m, n)
    u, _ = torch.linalg.qr(random(m, r, 1))
    v, _ = torch.linalg.qr(random(n, r, 2))
    return (u * sigma.double()) @ v.T


def spectra(r: int) -> dict[str, Tensor]:
    i = torch.arange(r, dtype=torch.float64)
    return {
        "heavy tail": 100 * (i + 1) ** -1.5,
        "wide": 10 ** (-6 * i / (r - 1)),  # sigma down to 1e-6: an fp32 Gram matrix has lost all below 3e-4
        "outlier": torch.cat([torch.tensor([1e4]), torch.linspace(1.2, 0.8, r - 1).double()]),
        "close": 1 + 1e-3 * (r - i) / r,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight_mn = random(*shape, dtype=dtype)
    basis = compute_basis(weight_mn)
    u, s, vh = torch.linalg.svd(weight_mn.double(), full_matrices=False)
    r = min(shape)
    assert basis.side == ("in" if shape[1] <= shape[0] else "out")
    assert basis.vectors_RR.shape == (r, r) and basis.vectors_RR.dtype == basis.sigma_R.dtype == torch.float32
    assert basis.vectors_RR.is_contiguous() and bool((basis.sigma_R[:-1] >= basis.sigma_R[1:]).all())
    torch.testing.assert_close(basis.sigma_R.double(), s, rtol=1e-6, atol=1e-7)
    truth_RR = vh.T if basis.side == "in" else u
    assert float(((basis.vectors_RR.double().T @ truth_RR).diagonal().abs() - 1).abs().max()) < 1e-6
    assert float((basis.vectors_RR.double().T @ basis.vectors_RR.double() - torch.eye(r)).abs().max()) < 1e-6


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
@pytest.mark.parametrize("spectrum", ["heavy tail", "wide", "outlier", "close"])
def test_the_scaled_weight_and_dz_are_those_of_the_svd(shape: tuple[int, int], spectrum: str) -> None:
    """W' = U diag(sigma z) V^T for a random z, and dz_i = u_i^T G v_i sigma_i, through P alone (in fp32)."""
    weight_mn = with_spectrum(*shape, spectra(min(shape))[spectrum]).float()
    u, s, vh = torch.linalg.svd(weight_mn.double(), full_matrices=False)
    z_R = 1 + 0.1 * random(1, min(shape), 3)[0]
    exact_mn = (u * (s * z_R)) @ vh
    basis = compute_basis(weight_mn)
    p_RR, w_mn = basis.vectors_RR.double(), weight_mn.double()
    ours_mn = w_mn @ (p_RR * z_R) @ p_RR.T if basis.side == "in" else (p_RR * z_R) @ p_RR.T @ w_mn
    assert float((ours_mn - exact_mn).norm() / exact_mn.norm()) < 1e-6

    grad_mn = random(*shape, 4)
    exact_R = torch.einsum("mr,mn,rn->r", u, grad_mn, vh) * s
    rotated = grad_mn.T @ w_mn if basis.side == "in" else grad_mn @ w_mn.T
    ours_R = ((rotated @ p_RR) * p_RR).sum(0)
    assert float((ours_R - exact_R).abs().max() / exact_R.abs().max()) < 5e-7


def test_small_sigma_are_measured_not_rooted() -> None:
    """sqrt of a Gram eigenvalue is noise below 1e-8 sigma_1; ||W p|| is not."""
    weight_mn = torch.diag(torch.tensor([1.0, 1e-5, 1e-9, 1e-11], dtype=torch.float64))
    torch.testing.assert_close(compute_basis(weight_mn).sigma_R.double(), weight_mn.diagonal(), rtol=1e-3, atol=0)


def test_rank_deficient_zero_and_tiny_matrices_keep_an_orthogonal_basis() -> None:
    low = random(40, 5, 1) @ random(5, 30, 2)
    for weight_mn in (low, low.T, torch.zeros(6, 4), torch.full((4, 4), 1e-38), torch.full((3, 3), 1e37)):
        basis = compute_basis(weight_mn.bfloat16())
        assert bool(torch.isfinite(basis.vectors_RR).all() & torch.isfinite(basis.sigma_R).all())
        assert basis_error(basis, weight_mn.bfloat16())[0] < 1e-6
    assert float(compute_basis(low).sigma_R[5:].max()) < 1e-6 * float(compute_basis(low).sigma_R[0])


def test_signs_are_fixed_so_a_rebuilt_basis_is_the_same() -> None:
    weight_mn = random(50, 30)
    first, flipped = compute_basis(weight_mn), compute_basis(-weight_mn)
    assert torch.equal(first.vectors_RR, compute_basis(weight_mn.clone()).vectors_RR)
    torch.testing.assert_close(first.vectors_RR, flipped.vectors_RR)
    largest = first.vectors_RR.gather(0, first.vectors_RR.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())


def test_a_transposed_view_is_read_as_it_is() -> None:
    weight_mn = random(20, 30)
    a, b = compute_basis(weight_mn.T), compute_basis(weight_mn.T.contiguous())
    torch.testing.assert_close(a.vectors_RR, b.vectors_RR)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(3), "2-D"),
        (torch.zeros(2, 3, 4), "2-D"),
        (torch.zeros(0, 4), "non-empty"),
        (torch.zeros(4, 4, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(4, 4, device="meta"), "meta"),
        (torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]]), "2 non-finite"),
        (torch.full((3, 3), 3e38), "beyond fp32"),
    ],
)
def test_what_has_no_basis_is_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(BasisError, match=message):
        compute_basis(weight)


def test_basis_error_sees_a_basis_of_another_weight() -> None:
    weight_mn, other_mn = random(40, 30), random(40, 30, seed=9)
    basis = compute_basis(weight_mn)
    orthogonality, reconstruction = basis_error(basis, weight_mn)
    assert orthogonality < 1e-6 and reconstruction is not None and reconstruction < 1e-6
    assert basis_error(basis)[1] is None
    wrong = basis_error(basis, other_mn)[1]
    assert wrong is not None and wrong > 1e-3
    skewed = type(basis)(basis.side, basis.vectors_RR * 1.01, basis.sigma_R)
    assert basis_error(skewed)[0] > 1e-2
    with pytest.raises(BasisError, match="does not belong"):
        basis_error(basis, random(30, 40))


def test_it_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    basis_error(compute_basis(random(20, 10)))
    assert torch.equal(state, torch.get_rng_state())
