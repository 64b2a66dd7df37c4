"""SVFLayer: one linear layer, its frozen basis, and one z per adapter.

    y = W' x,  W' = U diag(sigma z) V^T,  trainable: z - 1     (Transformer-Squared, arXiv 2501.06252, section 3)

Departures from the paper and from the reference code:

1. The wrapped layer is a black box in the default form, so quantised and sharded layers work as they are.
2. `delta` = z - 1 is the parameter (in bf16, 1 + 1e-3 == 1). `sigmoid_renorm` is the reference code's parametrisation;
   its normalisation depends on sigma, so W need not be decomposed again.
3. Several active adapters add up: z = 1 + sum_k (z_k - 1).
4. W stays resident in every form: `disable_adapter()` is the exact base (docs/adr/0002-factored-keeps-w.md).
5. Merging puts a new parameter in W's place instead of writing over W, so other modules that share W keep it, and
   unmerging restores the same parameter object, ties included.

Names: `svf_z.<adapter>.delta` (trainable, fp32), `svf_basis` (P, frozen, in the base layer's compute dtype),
`svf_sigma` (frozen, fp32, only for sigmoid_renorm), `svf_factor` (B, frozen, only in the factored form).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transformer2.errors import ConfigError, UserError
from transformer2.svf import forms
from transformer2.svf.basis import Basis, Side
from transformer2.svf.config import SVFConfig, check_form
from transformer2.svf.format import module_path
from transformer2.svf.open_rows import Rows
from transformer2.svf.register import register_after
from transformer2.svf.scales import DirectScale, RenormScale
from transformer2.svf.targets import features_of

__all__ = ["SVFLayer", "dense_weight", "probe_weight", "svf_layers", "tuned_layers"]


class SVFLayer(nn.Module, BaseTunerLayer):
    """A linear layer under SVF.

    Args:
        base_layer: The layer: nn.Linear, Conv1D, or anything that maps (..., n) to (..., m) linearly.
        adapter_name: Name of its first adapter.
        config: Of that adapter; its `form` is the layer's (see `set_form`).
        basis: Gives the layer's basis; None where the weight has no values yet (meta device).
        dtype: Of P; None means that of the layer's weight. Packed weights do not always say what they multiply in.
    """

    adapter_layer_names = ("svf_z",)
    base_layer: nn.Module
    active_adapters: list[str]
    svf_z: nn.ModuleDict
    svf_basis: nn.Parameter
    svf_sigma: nn.Parameter | None
    svf_factor: nn.Parameter | None

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: SVFConfig,
        basis: Basis | None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        features = features_of(base_layer)
        assert features is not None
        self.base_layer = base_layer
        self.in_features, self.out_features = features
        self.side: Side = "in" if self.in_features <= self.out_features else "out"
        self.r = min(features)
        self.merged_adapters: list[str] = []
        self.svf_z = nn.ModuleDict()
        self._unmerged_weight: nn.Parameter | None = None  # W as stored, while adapters are merged into the base layer
        self.weight_was_read = False
        device, compute_dtype = _device_and_dtype(base_layer)
        if basis is None:
            vectors_RR, self._sigma_R = torch.empty(self.r, self.r, device="meta"), torch.empty(self.r, device="meta")
        else:
            vectors_RR, self._sigma_R = basis.vectors_RR.to(device), basis.sigma_R.to(device)
        self._freeze("svf_basis", vectors_RR.to(dtype or compute_dtype).contiguous())
        self._freeze("svf_sigma", None)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)
        self.set_form(config.form)

    def _freeze(self, name: str, tensor: Tensor | None) -> None:
        # Past nn.Module.__setattr__: under low_cpu_mem_usage PEFT patches register_parameter to build on the meta
        # device, where a frozen basis would stay for ever. (A buffer would be broadcast by DDP and whole under ZeRO-3.)
        self._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=False)

    def update_layer(self, adapter_name: str, config: SVFConfig) -> None:
        """Add an adapter, at z = 1."""
        device = self.svf_basis.device
        scale: DirectScale | RenormScale = DirectScale(torch.zeros(self.r, device=device))
        if config.parametrization == "sigmoid_renorm":
            if self.svf_sigma is None:
                self._freeze("svf_sigma", self._sigma_R.to(device))
            scale = RenormScale(torch.empty(self.r, device=device).normal_(0.1, 0.01))
        scale.requires_grad_(adapter_name in self.active_adapters and not config.inference_mode)
        self.svf_z[adapter_name] = scale

    # z

    def delta(self, adapter_names: Sequence[str]) -> Tensor | None:
        """sum_k (z_k - 1) over these adapters, (r,); None when the layer has none of them."""
        deltas = [self.svf_z[name](self.svf_sigma) for name in adapter_names if name in self.svf_z]
        return functools.reduce(torch.add, deltas) if deltas else None

    def detached_delta(self, adapter_names: Sequence[str]) -> Tensor:
        """The same without a graph, fp32; zeros when the layer has none of them."""
        delta_R = self.delta(adapter_names)
        return torch.zeros(self.r, device=self.svf_basis.device) if delta_R is None else delta_R.detach().float()

    def parameters_of(self, adapter_name: str) -> list[nn.Parameter]:
        """The trainable parameter of an adapter, if the layer has that adapter."""
        return list(self.svf_z[adapter_name].parameters()) if adapter_name in self.svf_z else []

    # Forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output under the active z; the base layer's own where adapters are off or merged."""
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        if self._disable_adapters or self.merged_adapters:
            return self.base_layer(x, *args, **kwargs)
        # torch.compile reads through an empty set, not through a context variable.
        delta = Rows.of(self) if Rows.everywhere else None
        if delta is None:
            delta = self.delta(self.active_adapters)
        if delta is None:
            return self.base_layer(x, *args, **kwargs)
        if delta.ndim == 2:
            delta = forms.spread_rows(delta, x)
        if self.form == "delta":
            base = (lambda x: self.base_layer(x, *args, **kwargs)) if args or kwargs else self.base_layer
            bias_m = self._bias(x) if self.side == "out" else None
            return forms.forward_delta(x, base, bias_m, self.svf_basis.to(x.dtype), delta.to(x.dtype), self.side)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias_m = cast(Tensor | None, self.base_layer.bias)
        factor = cast(Tensor, self.svf_factor)
        return forms.forward_factored(
            x.to(dtype), factor.to(dtype), None if bias_m is None else bias_m.to(dtype), self.svf_basis.to(dtype),
            delta.to(dtype), self.side,
        )  # fmt: skip

    def _bias(self, x: Tensor) -> Tensor | None:
        bias = getattr(self.base_layer, "bias", None)
        if bias is None or isinstance(bias, Tensor):
            return bias
        # Packed layers hide it behind a method; the layer's answer to zeros is the bias whatever it is called.
        with torch.no_grad():
            return self.base_layer(x.new_zeros(1, self.in_features))[0]

    # Forms and merging

    def weight_mn(self) -> Tensor:
        """The base W (m, n), a view, whether or not adapters are merged into the layer.

        Raises:
            ConfigError: The base layer is quantised or otherwise opaque.
        """
        weight = dense_weight(self.base_layer)
        if weight is None:
            raise ConfigError(
                f"{type(self.base_layer).__name__} is quantised, sharded or opaque: its weight cannot be factored "
                "or merged; use form='delta', or load the base model unquantised"
            )
        if (unmerged := self.unmerged_weight) is not None:
            return unmerged.T if isinstance(self.base_layer, Conv1D) else unmerged
        return weight

    @property
    def unmerged_weight(self) -> nn.Parameter | None:
        """W while adapters are merged into the base layer, where the model is by now and in its dtype; else None."""
        if self._unmerged_weight is not None:
            self._unmerged_weight.data = self._unmerged_weight.data.to(cast(nn.Parameter, self.base_layer.weight))
        return self._unmerged_weight

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for models that look at it: at its dtype mostly, see SVFModel for the others."""
        self.weight_was_read = True
        return super().weight

    @property
    def scaling(self) -> dict[str, int]:
        """1 for every adapter: see peft.utils.hotswap."""
        return dict.fromkeys(self.svf_z, 1)

    def set_form(self, form: str) -> None:
        """Switch the form of the forward pass.

        Raises:
            ConfigError: Unknown form, or one that this base layer cannot have.
        """
        check_form(form)
        factor = None
        if form == "factored":
            with torch.no_grad():
                factor = forms.factor_weight(self.weight_mn(), self.svf_basis, self.side)
        self._freeze("svf_factor", factor)
        self.form = form

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put W' in the place of W; W itself is kept, so `unmerge` is exact.

        Args:
            safe_merge: Accepted for PEFT; the result is always checked before W is touched.
            adapter_names: Adapters to merge; None means the active ones.

        Raises:
            ConfigError: The base layer is quantised or opaque.
            UserError: Inside `z_rows`, or W' has non-finite entries.
        """
        if Rows.open_anywhere(self):
            raise UserError("adapters cannot be merged inside z_rows, of whatever thread; leave it first")
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.svf_z]
        if not names:
            return
        weight_mn = self.weight_mn()
        delta_R = self.delta([*self.merged_adapters, *names])
        assert delta_R is not None
        composed_mn = forms.compose_weight(weight_mn, self.svf_basis, delta_R, self.side)
        # One entry that is not finite makes the sum so; a sum is several times faster than isfinite().all().
        if not math.isfinite(composed_mn.sum(dtype=torch.promote_types(composed_mn.dtype, torch.float32))):
            raise UserError(
                f"merging {', '.join(names)} would write non-finite weights (largest |z - 1| is "
                f"{float(delta_R.abs().max()):.3g}); nothing was changed. Is the expert damaged?"
            )
        stored = cast(nn.Parameter, self.base_layer.weight)
        if self._unmerged_weight is None:
            self.__dict__["_unmerged_weight"] = stored  # past nn.Module, which would make it a parameter of this one
        composed = composed_mn.T.contiguous() if isinstance(self.base_layer, Conv1D) else composed_mn
        self.base_layer.weight = nn.Parameter(composed, requires_grad=stored.requires_grad)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put back the parameter that `merge` replaced."""
        self.__dict__.pop("forward", None)
        if (unmerged := self.unmerged_weight) is None:
            return
        self.base_layer.weight = unmerged
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def bypass(self) -> None:
        """Let calls go straight to the base layer until `unmerge` (rollouts under merged weights)."""
        inner = self.base_layer
        hooked = inner._forward_hooks or inner._forward_pre_hooks
        self.__dict__["forward"] = inner if hooked else inner.forward

    # PEFT's own switches

    def enable_adapters(self, enabled: bool) -> None:
        """Switch adapters on or off; unlike PEFT's default this leaves `requires_grad` as it is."""
        if "forward" in self.__dict__:
            raise UserError("adapters cannot be switched inside merged_for_rollout; leave it first")
        self._disable_adapters = not enabled

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's version also casts to the base layer's dtype; z - 1 stays fp32.
        for scale in (self.svf_z[name] for name in self.svf_z if name == adapter_name):
            if not any(p.is_meta for p in scale.parameters()):
                scale.to(device or self.svf_basis.device)

    def extra_repr(self) -> str:
        """Side, size and form."""
        return f"side={self.side}, r={self.r}, form={self.form}"


def svf_layers(model: nn.Module) -> list[tuple[str, SVFLayer]]:
    """(path, layer) of every SVF layer of a model, in module order; works on PeftModel and on plain models."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, SVFLayer)]


def tuned_layers(policy: nn.Module) -> dict[str, SVFLayer]:
    """The same by their module's path in the base model: the axis L of `z_rows`."""
    return {module_path(name): layer for name, layer in svf_layers(policy)}


def dense_weight(layer: nn.Module) -> Tensor | None:
    """W (m, n) of a layer that is x W^T + b with a plain floating W, as a view; None for quantised or other layers.

    Also None for a W that is sharded among processes and not gathered at the moment (ZeRO-3).
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or type(weight.data) is not Tensor or weight.ndim != 2:
        return None
    if not weight.is_floating_point() or weight.element_size() < 2:
        return None
    if isinstance(layer, Conv1D):
        return weight.T
    return weight if type(layer).forward is nn.Linear.forward else None


@torch.no_grad()
def probe_weight(layer: nn.Module) -> Tensor:
    """W (m, n) of any linear layer: its dense weight, or else its answers to the unit vectors."""
    weight = dense_weight(layer)
    if weight is not None:
        return weight.detach()
    features = features_of(layer)
    assert features is not None
    device, dtype = _device_and_dtype(layer)
    zeros = torch.zeros(1, features[0], device=device, dtype=dtype)
    units = torch.eye(features[0], device=device, dtype=dtype)
    return (layer(units).float() - layer(zeros).float()).T


def _device_and_dtype(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a layer is, and the dtype it multiplies in."""
    tensors = [*layer.parameters(), *layer.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    weight = dense_weight(layer)
    dtype = weight.dtype if weight is not None else getattr(layer, "compute_dtype", None)
    if not isinstance(dtype, torch.dtype):
        floating = [t.dtype for t in tensors if t.is_floating_point() and t.element_size() >= 2]
        dtype = floating[0] if floating else torch.get_default_dtype()
    return device, dtype


register_after(__name__)
