"""The pure functions of forms.py against the definition, in fp64."""

from __future__ import annotations

import pytest
import torch

from transformer2.errors import UserError
from transformer2.svf import forms

SHAPES = pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7), (6, 6)])


def problem(m, n, bias=True):
    """x, W, P, d, side, b, and U diag(sigma z) V^T with its factors."""
    torch.manual_seed(0)
    weight = torch.randn(m, n, dtype=torch.float64)
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    side = "in" if n <= m else "out"
    basis = (vh.T if side == "in" else u).contiguous()
    delta = torch.randn(min(m, n), dtype=torch.float64) * 0.5
    x = torch.randn(3, 4, n, dtype=torch.float64)
    b = torch.randn(m, dtype=torch.float64) if bias else None
    return x, weight, basis, delta, side, b, (u, sigma, vh)


def run(form, x, weight, basis, delta, side, bias):
    if form == "delta":
        return forms.forward_delta(x, lambda v: torch.nn.functional.linear(v, weight, bias), bias, basis, delta, side)
    factor = weight @ basis if side == "in" else basis.T @ weight
    return forms.forward_factored(x, factor, bias, basis, delta, side)


@SHAPES
@pytest.mark.parametrize("form", ["delta", "factored"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("special", [None, 0.0, 1e-9])
def test_output_and_gradients_are_those_of_the_definition(m, n, form, bias, special):
    x, weight, basis, delta, side, b, (u, sigma, vh) = problem(m, n, bias)
    if special is not None:  # z = 0 and nearly so
        delta[1] = special - 1
    delta.requires_grad_()
    x.requires_grad_()
    y = run(form, x, weight, basis, delta, side, b)
    composed = (u * (sigma * (1 + delta.detach()))) @ vh
    torch.testing.assert_close(forms.compose_weight(weight, basis, delta.detach(), side), composed)
    expected = x.detach() @ composed.T + (0 if b is None else b)
    torch.testing.assert_close(y.detach(), expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(y)
    grad_x, grad_delta = torch.autograd.grad(y, (x, delta), upstream)
    dense = upstream.flatten(0, 1).T @ x.detach().flatten(0, 1)
    torch.testing.assert_close(grad_delta, sigma * ((u.T @ dense) * vh).sum(-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad_x, upstream @ composed, rtol=1e-9, atol=1e-9)


@SHAPES
@pytest.mark.parametrize("form", ["delta", "factored"])
def test_gradcheck(m, n, form):
    x, weight, basis, delta, side, b, _ = problem(m, n)
    x.requires_grad_()
    delta[0] = -1 + 1e-3
    delta.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, d: run(form, x, weight, basis, d, side, b), (x, delta))


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_delta_changes_no_bit(m, n, dtype):
    x, weight, basis, delta, side, b, _ = problem(m, n)
    x, weight, basis, b = (t.to(dtype) for t in (x, weight, basis, b))
    delta = torch.zeros_like(delta, dtype=dtype)
    expected = torch.nn.functional.linear(x, weight, b)
    assert torch.equal(run("delta", x, weight, basis, delta, side, b), expected)
    assert torch.equal(forms.compose_weight(weight, basis, delta, side), weight)


@pytest.mark.parametrize("form", ["delta", "factored"])
@SHAPES
def test_rows_are_what_single_vectors_give(m, n, form):
    x, weight, basis, _, side, b, _ = problem(m, n)
    delta_BR = torch.randn(3, min(m, n), dtype=torch.float64)
    mixed = run(form, x, weight, basis, forms.spread_rows(delta_BR, x), side, b)
    for row in range(3):
        alone = run(form, x[row : row + 1], weight, basis, delta_BR[row], side, b)
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-12, atol=1e-12)


def test_spread_rows_follows_expanded_and_flattened_batches():
    delta_BR = torch.tensor([[1.0], [2.0]])
    assert forms.spread_rows(delta_BR, torch.zeros(2, 3, 4)).flatten().tolist() == [1, 2]
    assert forms.spread_rows(delta_BR, torch.zeros(4, 3, 4)).flatten().tolist() == [1, 1, 2, 2]
    assert forms.spread_rows(delta_BR, torch.zeros(6, 4)).flatten().tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(UserError, match="2 rows of weights and the batch has 3"):
        forms.spread_rows(delta_BR, torch.zeros(3, 3, 4))


def test_small_changes_of_z_survive_bf16_in_the_factored_form():
    """In bf16 a z of 1.003 is 1; on average over tokens its effect must still be there."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 8, dtype=torch.bfloat16)
    eye = torch.eye(8, dtype=torch.bfloat16)
    y = forms.forward_factored(x, eye, None, eye, torch.full((8,), 3e-3, dtype=torch.bfloat16), "in")
    gain = (y.double() * x.double()).sum() / x.double().square().sum() - 1
    assert 2e-3 < float(gain) < 4e-3
