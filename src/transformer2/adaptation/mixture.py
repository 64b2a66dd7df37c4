"""What a search's numbers mean: mixing weights per expert, module kind, layer or matrix.

Every mix of svf/mixing.py is a weighted sum of the experts' z and of the base's z = 1,

    z' = sum_k w_k z_k + w_0 · 1,    w_k = a_k,    w_0 = 1 - sum_k a_k; raw: 0, or the base's own a,

so one set of weights (L, B, K + 1) serves experts, mixtures, the base and constant z alike, and one batch may hold them
all; they are "raw" weights of the experts with the base as one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from transformer2.errors import ConfigError
from transformer2.experts import Expert
from transformer2.experts.mix import mixture
from transformer2.svf.format import layer_of, module_kind
from transformer2.svf.mixing import Mix, normalised

__all__ = ["Granularity", "Mix", "Mixture", "base_row", "constant_rows", "expert_rows"]

Granularity = Literal["expert", "kind", "layer", "matrix"]


class Mixture:
    """From flat vectors to weights.

    Args:
        matrices: Paths of the L tuned matrices, in module order.
        experts: Names of the K experts.
        granularity: One alpha per expert, or per expert and module kind, layer or matrix.
        mix: See svf/mixing.py.
        base_member: The base has an alpha of its own (without effect on `delta`, and refused there).

    Attributes:
        members: Names of what the alphas weigh.
        groups: Names of the G groups of matrices that share an alpha.
        dim: Length of a flat vector: G x members, group by group.
    """

    def __init__(
        self,
        matrices: Sequence[str],
        experts: Sequence[str],
        granularity: Granularity = "expert",
        mix: Mix = "delta",
        base_member: bool = False,
    ) -> None:
        for given, known in ((granularity, Granularity), (mix, Mix)):
            if given not in get_args(known):
                raise ConfigError(f"unknown granularity or mix {given!r}; use one of {', '.join(get_args(known))}")
        if base_member and mix == "delta":
            raise ConfigError("the base as a member changes nothing under mix 'delta'; use normalised or raw")
        self.matrices, self.experts, self.mix = list(matrices), list(experts), mix
        names = [group_name(matrix, granularity) for matrix in matrices]
        self.groups = list(dict.fromkeys(names))
        self.group_L = torch.tensor([self.groups.index(name) for name in names])
        self.members = [*experts, "base"] if base_member else list(experts)
        self.dim = len(self.groups) * len(self.members)

    def by_group(self, alpha_MD: Tensor) -> Tensor:
        """(M, G, members) of M flat vectors."""
        return alpha_MD.view(len(alpha_MD), len(self.groups), len(self.members))

    def weights(self, alpha_MD: Tensor) -> Tensor:
        """Weights (L, M, K + 1) over the experts and the base; not finite where a sum to divide by is zero."""
        alpha_MGK = self.by_group(alpha_MD).float()
        if self.mix == "normalised":
            alpha_MGK = normalised(alpha_MGK)
        expert_MGK, base_MG = alpha_MGK[..., : len(self.experts)], alpha_MGK[..., len(self.experts) :].sum(-1)
        if self.mix != "raw":
            base_MG = 1 - expert_MGK.sum(-1)
        return torch.cat([expert_MGK, base_MG[..., None]], dim=-1)[:, self.group_L].transpose(0, 1)

    def expert(self, alpha_D: Tensor, experts: Sequence[Expert], name: str, task: str | None = None) -> Expert:
        """The mixture as an expert like any other.

        Args:
            alpha_D: One flat vector.
            experts: The K experts.
            name: Its name.
            task: What it was adapted to.
        """
        weights_LK = self.weights(alpha_D[None])[:, 0].double()
        weights = dict(zip(self.matrices, weights_LK, strict=True))
        return mixture([*experts, Expert("base")], weights, "raw", name, task)


def group_name(matrix: str, granularity: Granularity) -> str:
    """Which matrices share an alpha: "all", "mlp.up_proj", "layer 3", or the matrix alone."""
    if granularity == "layer" and (layer := layer_of(matrix)) is not None:
        return f"layer {layer}"
    return {"expert": "all", "kind": module_kind(matrix)}.get(granularity, matrix)


def base_row(num_experts: int) -> Tensor:
    """Weights (1, K + 1) of the base model, exactly."""
    return torch.eye(num_experts + 1)[-1:]


def expert_rows(num_experts: int) -> Tensor:
    """Weights (K, K + 1) of each expert alone."""
    return torch.eye(num_experts + 1)[:-1]


def constant_rows(num_experts: int, constants: Sequence[float]) -> Tensor:
    """Weights (n, K + 1) of z = c on every matrix."""
    return torch.tensor(constants)[:, None] * base_row(num_experts)
