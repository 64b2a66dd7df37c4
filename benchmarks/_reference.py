"""The algorithm that SVF is compared with: what the paper's code does, rewritten from its description.

Every tuned W is kept as U, sigma, V. Before each optimizer step W' = U diag(sigma z) V^T is composed as a dense
weight; samples go through one at a time and add up a dense gradient of W'; then that gradient is pulled back to z
through the composition. The KL reference is a second copy of the model, and both models' full log-softmax are kept.

In bf16, U, V and W' are bf16, sigma and z fp32. Left out in its favour: the normalisation sum(sigma) /
sum(sigma z), the r x r diagonal matrix of its product, and the copy of the composed weights into the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RecomposedLinear", "recompose_all", "recomposed"]


class RecomposedLinear(nn.Module):
    """A linear layer whose dense weight is composed from U, sigma, V and z.

    Args:
        linear: The layer it replaces.
        factors: U (m, r), sigma (r,), V^T (r, n); None decomposes the layer's weight.
    """

    def __init__(self, linear: nn.Linear, factors: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        super().__init__()
        dtype = linear.weight.dtype
        u_mR, sigma_R, vh_Rn = factors or torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        self.u_mR, self.sigma_R, self.vh_Rn = u_mR.to(dtype).contiguous(), sigma_R, vh_Rn.to(dtype).contiguous()
        self.z_R = nn.Parameter(torch.ones_like(sigma_R))
        self.bias_m = linear.bias
        self.recompose()

    def recompose(self) -> None:
        """A new W' for the z of now."""
        with torch.enable_grad():
            self.composed_mn = (self.u_mR * (self.sigma_R * self.z_R).to(self.u_mR.dtype)) @ self.vh_Rn
        self.weight_mn = self.composed_mn.detach().requires_grad_()

    def forward(self, x: Tensor) -> Tensor:
        """W' x."""
        return F.linear(x, self.weight_mn, self.bias_m)

    def backward_to_z(self) -> None:
        """From the dense gradient that the samples have added up to the gradient of z."""
        self.composed_mn.backward(self.weight_mn.grad)
        self.weight_mn.grad = None


def recomposed(
    model: nn.Module,
    suffixes: tuple[str, ...],
    factors: Callable[[nn.Linear], tuple[Tensor, Tensor, Tensor]] | None = None,
) -> list[RecomposedLinear]:
    """Replace every linear layer whose name ends in one of `suffixes`, freeze the rest, return the new layers.

    Args:
        model: Changed in place.
        suffixes: Leaf names.
        factors: Gives U, sigma and V^T of a layer; None decomposes its weight.
    """
    model.requires_grad_(False)
    layers = []
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path.endswith(suffixes):
            parent, _, name = path.rpartition(".")
            layers.append(RecomposedLinear(module, factors(module) if factors else None))
            setattr(model.get_submodule(parent), name, layers[-1])
    return layers


def recompose_all(layers: list[RecomposedLinear]) -> None:
    """A new W' everywhere."""
    for layer in layers:
        layer.recompose()
