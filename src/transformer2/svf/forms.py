"""How z enters the forward pass of one linear layer. Pure functions of named tensors; no modules, no configs.

    y = W' x,  W' = U diag(sigma z) V^T,  d = z - 1     (Transformer-Squared, arXiv 2501.06252, section 3)

    form      n <= m (P = V)               m < n (P = U), h = W x           forward, units of m n
    delta     W (x + P (d * P^T x))        h + P (d * P^T h)                1 + 2 rho
    factored  (W P) (z * P^T x)            P (z * (P^T W) x)                1 + rho

Rollouts and exports may compose W' = W + W P diag(d) P^T, or W + P diag(d) P^T W, and then cost 1; training does not
(docs/adr/0015-no-merged-training.md).

Departures from the paper and from the reference code:

1. W and one orthogonal P instead of U, sigma and V: W P = U diag(sigma) for n <= m.
2. d = z - 1 is what is stored, so the base model is d = 0 and delta gives its output bit for bit.
3. The gradient of z never passes through a dense gradient of W.
4. z may have one row per row of the batch; the reference serves one z at a time.

Shapes: x (..., n), base output (..., m), d (r,) fp32 or (rows, r), P (r, r), r = min(m, n). T counts all leading axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer2.errors import UserError
from transformer2.svf.basis import Side

__all__ = [
    "FORMS", "Form", "add_in_basis", "compose_weight", "factor_weight", "forward_delta", "forward_factored",
    "spread_rows",
]  # fmt: skip

Form = Literal["delta", "factored"]
FORMS: tuple[Form, ...] = get_args(Form)


def spread_rows(delta_BR: Tensor, x: Tensor) -> Tensor:
    """d with the axes of x: row b of B goes to the b-th run of x's leading axis.

    A batch that `generate` expanded (several sequences or beams per prompt) repeats every row in place, and a model
    that flattens (B, T) to one axis keeps a prompt's tokens together, so in both cases the factor is
    x.shape[0] / B.

    Raises:
        UserError: The leading axis of x is not a multiple of B.
    """
    rows, count = delta_BR.shape[0], x.shape[0]
    if count % rows:
        raise UserError(f"z_rows got {rows} rows of weights and the batch has {count}; give one row per prompt")
    if count != rows:
        delta_BR = delta_BR.repeat_interleave(count // rows, dim=0)
    return delta_BR.reshape(count, *[1] * (x.ndim - 2), -1)


def add_in_basis(x: Tensor, basis_RR: Tensor, delta_R: Tensor, bias_R: Tensor | None = None) -> Tensor:
    """x + P (d * P^T (x - b)) for x (..., r); exactly x where d is 0."""
    scaled = ((x if bias_R is None else x - bias_R) @ basis_RR) * delta_R
    r = x.shape[-1]
    return torch.addmm(x.reshape(-1, r), scaled.reshape(-1, r), basis_RR.T).reshape(x.shape)


def forward_delta(
    x: Tensor,
    base: Callable[[Tensor], Tensor],
    bias_m: Tensor | None,
    basis_RR: Tensor,
    delta_R: Tensor,
    side: Side,
) -> Tensor:
    """The form that keeps the base layer a black box."""
    if side == "in":
        return base(add_in_basis(x, basis_RR, delta_R))
    y = base(x)
    bias_R = None if bias_m is None else bias_m.to(y.dtype)
    return add_in_basis(y, basis_RR.to(y.dtype), delta_R.to(y.dtype), bias_R)


def forward_factored(
    x: Tensor, factor: Tensor, bias_m: Tensor | None, basis_RR: Tensor, delta_R: Tensor, side: Side
) -> Tensor:
    """y = B (z * P^T x) with B = W P (m, r), or P (z * B x) with B = P^T W (r, n)."""
    u = x @ basis_RR if side == "in" else F.linear(x, factor)
    # u + u d, not u times a rounded 1 + d: in bf16 1.003 is 1, which would lose z for every token alike.
    # Without gradients in place: u is a fresh product that nobody else reads.
    u = torch.addcmul(u, u, delta_R, out=None if torch.is_grad_enabled() else u)
    return F.linear(u, factor if side == "in" else basis_RR, bias_m)


def factor_weight(weight_mn: Tensor, basis_RR: Tensor, side: Side) -> Tensor:
    """B of the factored form, in the dtype of W: W P (m, r) or P^T W (r, n)."""
    weight, basis = weight_mn.float(), basis_RR.float()
    return (weight @ basis if side == "in" else basis.T @ weight).to(weight_mn.dtype).contiguous()


def compose_weight(weight_mn: Tensor, basis_RR: Tensor, delta_R: Tensor, side: Side) -> Tensor:
    """W' (m, n) in the dtype of W, composed in fp32 (fp64 where W is). Exactly W where d is 0."""
    dtype = torch.promote_types(weight_mn.dtype, torch.float32)
    weight, basis, delta = weight_mn.to(dtype), basis_RR.to(dtype), delta_R.to(dtype)
    step_RR = (basis * delta) @ basis.T
    product = torch.addmm(weight, weight, step_RR) if side == "in" else torch.addmm(weight, step_RR, weight)
    return product.to(weight_mn.dtype)
