"""z of one layer under one adapter, as it is trained: z - 1 itself, or the reference code's sigmoid of logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transformer2.errors import ExpertError

__all__ = ["DirectScale", "RenormScale", "renorm_decode", "renorm_encode"]


class DirectScale(nn.Module):
    """z - 1 as it is. Parameter: `delta` (r,) fp32."""

    def __init__(self, delta_R: Tensor):
        super().__init__()
        self.delta = nn.Parameter(delta_R)

    def forward(self, sigma_R: Tensor | None) -> Tensor:
        """z - 1, (r,)."""
        return self.delta


class RenormScale(nn.Module):
    """z = m sum(sigma) / sum(sigma m), m = sigmoid(logit). Parameter: `logit` (r,) fp32, from N(0.1, 0.01^2)."""

    def __init__(self, logit_R: Tensor):
        super().__init__()
        self.logit = nn.Parameter(logit_R)

    def forward(self, sigma_R: Tensor) -> Tensor:
        """z - 1, (r,)."""
        return renorm_decode(self.logit, sigma_R)


def renorm_decode(logit_R: Tensor, sigma_R: Tensor) -> Tensor:
    """z - 1 of the logits of `sigmoid_renorm`."""
    m_R, sigma_R = torch.sigmoid(logit_R), sigma_R.to(logit_R)
    return m_R * (sigma_R.sum() / (sigma_R * m_R).sum()) - 1


def renorm_encode(delta_R: Tensor, sigma_R: Tensor) -> Tensor:
    """Logits that give this z - 1, fp32: m is proportional to z; the factor is free, so m keeps its mean start, 0.525.

    Raises:
        ExpertError: No logits give it (z <= 0, or sum(sigma z) != sum(sigma)).
    """
    z_R, sigma_R = 1 + delta_R.double(), sigma_R.to(delta_R.device).double()
    drift = float((sigma_R * z_R).sum() / sigma_R.sum() - 1)
    if float(z_R.min()) <= 0 or abs(drift) > 1e-3:
        raise ExpertError(
            f"this z cannot be written as sigmoid_renorm (smallest z {float(z_R.min()):.3g}, sum(sigma z) off by "
            f"{drift:.1e}); load it with parametrization='direct'"
        )
    m_R = z_R * min(0.525, 0.98 / float(z_R.max()))
    return torch.log(m_R / (1 - m_R)).float()
