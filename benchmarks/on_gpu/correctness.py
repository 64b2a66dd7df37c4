"""Whether bf16 on the device computes what fp64 does: the whole model at z = 1, and every form of every shape.

1. z = 1 is the base bit for bit (PERFORMANCE.md, section 1, fact 2): logits of all layers, under the adapter and under
   `z_rows` with rows of zeros.
2. Outputs and gradients of z at |z - 1| of 1e-3 to 1e-1 against the layer composed in fp64 from the same bf16 W.
3. What bf16 keeps of the change that one learned step makes (fact 3): the W' that a form's stored numbers stand for
   against the exact one, as a share of the change itself.
Beside the forms stand W' as merged rollouts run on it, and W' = U diag(sigma z) V^T recomposed in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _common import DEVICE, Row, free_memory
from _llama8b import DTYPE, HIDDEN, INTERMEDIATE, model, num_layers, svf_policy
from _reference import RecomposedLinear
from torch import Tensor, nn

import transformer2
from transformer2.policy import reference
from transformer2.svf.basis import Basis, compute_basis
from transformer2.svf.config import SVFConfig
from transformer2.svf.forms import compose_weight
from transformer2.svf.layer import SVFLayer

FORMS = ("delta", "factored")
SPREADS = (1e-3, 1e-2, 1e-1)  # standard deviations of z - 1
STEP = 2e-3  # what one step of training changes z by
ROUNDED = 1e-2  # relative error of sums of bf16 products that is rounding and nothing else
FACT_3 = {"delta": 0.0024, "factored": 1.2, "merged": 0.64, "reference": 2.2}


def planned(toy: bool) -> dict[str, Row]:
    what = "whole model in bf16, logits that differ from the base's"
    rows = {
        "z": Row(f"{what}, delta at z = 1", None, "", at_most=0),
        "z_rows": Row(f"{what}, rows of zero weights", None, "", at_most=0),
    }
    for name in (*FORMS, "reference"):
        for m, n in _shapes(toy):
            limit = ROUNDED if name in FORMS else None
            rows[f"{name} {m} x {n}"] = Row(f"{m} x {n}: {name}, error of the output", None, "", at_most=limit)
    for name in FORMS:
        rows[f"{name} dz"] = Row(f"{name}, largest error of dz over the shapes", None, "", at_most=ROUNDED)
    for name in FACT_3:
        rows[f"{name} kept"] = Row(f"{name}, rounding of W' over the change of a step", None)
    return rows


def measure(toy: bool) -> Iterator[tuple[str, float, str]]:
    yield from _whole_model(toy)
    free_memory()
    dz_errors: dict[str, dict[str, float]] = {name: {} for name in FORMS}
    for m, n in _shapes(toy):
        layer = _Layer(m, n)
        for name in (*FORMS, "reference"):
            errors = [layer.output_error(name, spread) for spread in SPREADS]
            note = ", ".join(f"{error:.1e}" for error in errors)
            yield f"{name} {m} x {n}", max(errors), f"{note} where z - 1 is of 0.001, 0.01, 0.1"
        for name in FORMS:
            dz_errors[name][f"{m} x {n}"] = layer.dz_error(name, SPREADS[1])
        if (m, n) == _shapes(toy)[0]:
            for name, stated in FACT_3.items():
                note = f"{m} x {n}, z - 1 of {STEP:g}; PERFORMANCE.md says {stated:g}"
                yield f"{name} kept", layer.rounding_over_change(name), note
        del layer
        free_memory()
    for name, errors_of in dz_errors.items():
        note = ", ".join(f"{e:.1e} {shape}" for shape, e in errors_of.items())
        yield f"{name} dz", max(errors_of.values()), f"{note}; z - 1 of {SPREADS[1]:g}"


def _shapes(toy: bool) -> list[tuple[int, int]]:
    shapes = ((INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE), (HIDDEN, HIDDEN), (HIDDEN // 4, HIDDEN))
    return [(m // 64, n // 64) if toy else (m, n) for m, n in shapes]


@torch.no_grad()
def _whole_model(toy: bool) -> Iterator[tuple[str, float, str]]:
    layers = num_layers(toy)
    policy = svf_policy(model(layers, toy))
    ids_BT = torch.randint(4, policy.config.vocab_size, (4, 64), device=DEVICE)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :9] = 0  # one padded row, so that attention runs masked, as it does in training

    def logits_NV() -> Tensor:
        whole_BTV = policy(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        return whole_BTV[mask_BT.bool()]  # what a kernel leaves where all is masked is its own affair

    with reference(policy):
        base_NV = logits_NV()
    note = f"{layers} layers, {base_NV.numel()} logits"
    yield "z", float((logits_NV() != base_NV).sum()), note
    with transformer2.z_rows(policy, torch.zeros(len(ids_BT), 1), ["default"]):
        yield "z_rows", float((logits_NV() != base_NV).sum()), note


class _Layer:
    """One linear layer of random bf16 weights, in every form, next to its fp64 self."""

    def __init__(self, m: int, n: int, tokens: int = 512) -> None:
        torch.manual_seed(0)
        linear = nn.Linear(n, m, bias=False, device=DEVICE, dtype=DTYPE).requires_grad_(False)
        linear.weight.normal_(0.0, 0.02)
        self.weight_mn = linear.weight
        self.basis = compute_basis(linear.weight)
        self.forms = {form: SVFLayer(linear, "default", SVFConfig(form=form), self.basis) for form in FORMS}
        self.recomposed = RecomposedLinear(linear, _factors(linear.weight, self.basis))
        self.x_Tn = torch.randn(tokens, n, device=DEVICE, dtype=DTYPE)
        self.grad_Tm = torch.randn(tokens, m, device=DEVICE, dtype=DTYPE)
        self.unit_R = torch.randn(min(m, n), device=DEVICE)

    @torch.no_grad()
    def set_z(self, name: str, spread: float) -> None:
        """z - 1 of one form."""
        if name == "reference":
            self.recomposed.z_R.copy_(1 + spread * self.unit_R)
            self.recomposed.recompose()
        else:
            self.forms[name].parameters_of("default")[0].copy_(spread * self.unit_R)

    def exact_mn(self, delta_R: Tensor) -> Tensor:
        """W' in fp64."""
        return compose_weight(self.weight_mn.double(), self.basis.vectors_RR, delta_R.double(), self.basis.side)

    @torch.no_grad()
    def output_error(self, name: str, spread: float) -> float:
        """Relative error of the output."""
        self.set_z(name, spread)
        y_Tm = (self.recomposed if name == "reference" else self.forms[name])(self.x_Tn)
        return _relative(y_Tm, self.x_Tn.double() @ self.exact_mn(spread * self.unit_R).T)

    def dz_error(self, form: str, spread: float) -> float:
        """Relative error of the gradient of z."""
        self.set_z(form, spread)
        (trained,) = self.forms[form].parameters_of("default")
        (dz_R,) = torch.autograd.grad(self.forms[form](self.x_Tn), trained, self.grad_Tm)
        delta_R = (spread * self.unit_R).double().requires_grad_()
        y_Tm = self.x_Tn.double() @ self.exact_mn(delta_R).T
        (exact_R,) = torch.autograd.grad(y_Tm, delta_R, self.grad_Tm.double())
        return _relative(dz_R, exact_R)

    @torch.no_grad()
    def rounding_over_change(self, name: str) -> float:
        """||W' as stored - W'|| / ||W' - W|| at the change of one step; products of what is stored are in fp64."""
        if name != "merged":
            self.set_z(name, STEP)
        exact_mn = self.exact_mn(STEP * self.unit_R)
        change_mn = exact_mn - self.weight_mn.double()
        return float((self._stored_mn(name) - exact_mn).norm() / change_mn.norm())

    def _stored_mn(self, name: str) -> Tensor:
        if name == "reference":
            return self.recomposed.weight_mn.double()
        side, delta_R = self.basis.side, STEP * self.unit_R
        if name == "merged":
            return compose_weight(self.weight_mn, self.forms["delta"].svf_basis, delta_R, side).double()
        layer = self.forms[name]
        basis_RR, delta_R = layer.svf_basis.double(), delta_R.to(DTYPE).double()
        if name == "delta":
            return compose_weight(self.weight_mn.double(), basis_RR, delta_R, side)
        assert layer.svf_factor is not None
        factor = layer.svf_factor.double()
        return (factor * (1 + delta_R)) @ basis_RR.T if side == "in" else (basis_RR * (1 + delta_R)) @ factor


def _factors(weight_mn: Tensor, basis: Basis) -> tuple[Tensor, Tensor, Tensor]:
    """U, sigma and V^T, fp32, from the side basis."""
    vectors_RR, sigma_R = basis.vectors_RR.double(), basis.sigma_R.double()
    if basis.side == "in":
        return (weight_mn.double() @ vectors_RR / sigma_R).float(), basis.sigma_R, basis.vectors_RR.T
    return basis.vectors_RR, basis.sigma_R, (vectors_RR.T @ weight_mn.double() / sigma_R[:, None]).float()


def _relative(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())
