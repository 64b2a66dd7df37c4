"""SVFLayer: one linear layer, its frozen basis, and one z per adapter.

    y = W' x,  W' = U diag(sigma z) V^T,  trainable: z - 1     (Transformer-Squared, arXiv 2501.06252, section 3)

Departures from the paper and from the reference code:

1. The wrapped layer is a black box in the default form, so quantised and sharded layers work as they are.
2. `delta` = z - 1 is the parameter (in bf16, 1 + 1e-3 == 1). `sigmoid_renorm` is the reference code's parametrisation;
   its normalisation depends on sigma, so W need not be decomposed again.
3. Several active adapters add up: z = 1 + sum_k (z_k - 1).
4. W stays resident in every form: `disable_adapter()` is the exact base (docs/adr/0002-factored-keeps-w.md).
5. Merging puts a new parameter in W's place instead of writing over W, so weights that several modules share stay the
   others' own, and unmerging restores the very parameter, ties included.

Names: `svf_z.<adapter>.delta` (trainable, fp32), `svf_basis` (P, frozen, in the base layer's compute dtype),
`svf_sigma` (frozen, fp32, only for sigmoid_renorm), `svf_factor` (B, frozen, only in the factored form).
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from contextvars import ContextVar
from typing import Any, ClassVar, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transformer2.errors import ConfigError, ExpertError, UserError
from transformer2.svf import forms
from transformer2.svf.basis import Basis
from transformer2.svf.config import FORMS, SVFConfig
from transformer2.svf.targets import features_of

__all__ = [
    "DirectScale",
    "RenormScale",
    "Rows",
    "SVFLayer",
    "dense_weight",
    "probe_weight",
    "renorm_decode",
    "renorm_encode",
]


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


class Rows:
    """z - 1 for every row of the batch, (B, r) by layer, between `open` and `close`, for the code that opened it.

    Each thread and each asyncio task sees its own, as with torch.no_grad().
    """

    _of_this_code: ContextVar[tuple[Rows, ...]] = ContextVar("svf_rows", default=())
    everywhere: ClassVar[set[Rows]] = set()  # all that are open

    def __init__(self, deltas: dict[SVFLayer, Tensor]):
        self.deltas, self.thread = deltas, threading.get_ident()

    def open(self) -> None:
        """From now on this code runs under these rows."""
        self.everywhere.add(self)
        self._of_this_code.set((*self._of_this_code.get(), self))

    def close(self) -> None:
        """Back to the rows of before.

        Raises:
            UserError: Others were opened since and are still open, so what ran in between ran under those.
        """
        mine = self._of_this_code.get()
        self.everywhere.discard(self)
        self._of_this_code.set(tuple(rows for rows in mine if rows is not self))
        if mine[-1:] != (self,):
            raise UserError(
                "z_rows was left in another order, thread or task than it was entered (a generator that was suspended "
                "inside?), so rows ran under z that are not theirs; leave it before you yield"
            )

    @classmethod
    def of(cls, layer: SVFLayer) -> Tensor | None:
        """The layer's rows in this code; None outside `z_rows`."""
        for rows in reversed(cls._of_this_code.get()):
            if layer in rows.deltas and rows in cls.everywhere:
                return rows.deltas[layer]
        if any(rows.thread != threading.get_ident() for rows in cls.open_anywhere(layer)):
            warnings.warn(
                "z_rows is open in another thread and not in this one, which runs under the active adapter; a thread "
                "opens z_rows itself, or passes adapter_names",
                stacklevel=2,
            )
        return None

    @classmethod
    def open_anywhere(cls, layer: SVFLayer) -> list[Rows]:
        """All that are open for this layer, in whatever thread."""
        return [rows for rows in tuple(cls.everywhere) if layer in rows.deltas]


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
        self.side: forms.Side = "in" if self.in_features <= self.out_features else "out"
        self.merged_adapters: list[str] = []
        self.svf_z = nn.ModuleDict()
        self._composed: tuple[tuple[int, int], Tensor, Tensor, bool] | None = None
        self._unmerged_weight: nn.Parameter | None = None  # W as stored, while adapters are merged into the base layer
        self.weight_was_read = False
        device, compute_dtype = _compute_device_and_dtype(base_layer)
        r = min(features)
        if basis is None:
            vectors, sigma = torch.empty(r, r, device="meta"), torch.empty(r, device="meta")
        else:
            vectors, sigma = basis.vectors_RR.to(device), basis.sigma_R.to(device)
        # Past nn.Module.__setattr__: under low_cpu_mem_usage PEFT patches register_parameter to build on the meta
        # device, where a frozen basis would stay for ever. (A buffer would be broadcast by DDP and whole under ZeRO-3.)
        self._parameters["svf_basis"] = nn.Parameter(
            vectors.to(dtype or compute_dtype).contiguous(), requires_grad=False
        )
        self._parameters["svf_sigma"] = None
        self._parameters["svf_factor"] = None
        self._sigma_R = sigma
        self._active_adapter = adapter_name
        self.form: str = "delta"
        self.update_layer(adapter_name, config)
        self.set_form(config.form)

    def update_layer(self, adapter_name: str, config: SVFConfig) -> None:
        """Add an adapter, at z = 1 (plus noise when the config asks for it and it is not about to be loaded)."""
        r, device = min(self.in_features, self.out_features), self.svf_basis.device
        if config.parametrization == "sigmoid_renorm":
            if self._parameters["svf_sigma"] is None:
                self._parameters["svf_sigma"] = nn.Parameter(self._sigma_R.to(device), requires_grad=False)
            logit_R = torch.empty(r, device=device).normal_(0.1, 0.01)
            scale: nn.Module = RenormScale(logit_R)
        else:
            delta_R = torch.zeros(r, device=device)
            if config.init_std and not config.inference_mode:
                delta_R.normal_(0.0, config.init_std)
            scale = DirectScale(delta_R)
        scale.requires_grad_(adapter_name in self.active_adapters and not config.inference_mode)
        self.svf_z[adapter_name] = scale

    # z

    def delta(self, adapter_names: list[str]) -> Tensor | None:
        """sum_k (z_k - 1) over these adapters, (r,); None when the layer has none of them."""
        total: Tensor | None = None
        for name in adapter_names:
            if name in self.svf_z:
                delta_R = self.svf_z[name](self.svf_sigma)
                total = delta_R if total is None else total + delta_R
        return total

    def parameters_of(self, adapter_name: str) -> list[nn.Parameter]:
        """The trainable parameter of an adapter, if the layer has that adapter."""
        return list(self.svf_z[adapter_name].parameters()) if adapter_name in self.svf_z else []

    # Forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output under the active z; the base layer's own where adapters are off or merged."""
        if self._disable_adapters:
            if self.merged_adapters:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if self.merged_adapters:
            return self.base_layer(x, *args, **kwargs)
        # torch.compile reads through an empty set, not through a context variable.
        delta = Rows.of(self) if Rows.everywhere else None
        if delta is None:
            delta = self.delta(self.active_adapters)
        if delta is None:
            return self.base_layer(x, *args, **kwargs)
        if self.form == "delta" or (delta.ndim == 2 and self.form == "merged"):
            return self._forward_delta(x, delta, *args, **kwargs)
        weight_mn, bias_m = self.weight_mn(), cast(Tensor | None, self.base_layer.bias)
        dtype = _amp_dtype(x)
        x, basis_RR = x.to(dtype), self.svf_basis.to(dtype)
        if self.form == "factored":
            delta = forms.spread_rows(delta, x) if delta.ndim == 2 else delta
            return forms.forward_factored(
                x, cast(Tensor, self.svf_factor).to(dtype), _cast(bias_m, dtype), basis_RR, delta.to(dtype), self.side
            )
        composed_mn, tiny_z = self._compose_cached(weight_mn, delta)
        return forms.forward_merged(
            x, composed_mn.to(dtype), weight_mn.to(dtype), _cast(bias_m, dtype), basis_RR, delta, self.side, tiny_z
        )

    def _forward_delta(self, x: Tensor, delta: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if delta.ndim == 2:
            delta = forms.spread_rows(delta, x)

        base = functools.partial(_call, self.base_layer, args, kwargs) if args or kwargs else self.base_layer
        bias_m = self._bias(x) if self.side == "out" else None
        return forms.forward_delta(x, base, bias_m, self.svf_basis.to(x.dtype), delta.to(x.dtype), self.side)

    def _bias(self, x: Tensor) -> Tensor | None:
        bias = getattr(self.base_layer, "bias", None)
        if bias is None or isinstance(bias, Tensor):
            return bias
        # Packed layers hide it behind a method; the layer's answer to zeros is the bias whatever it is called.
        with torch.no_grad():
            return self.base_layer(x.new_zeros(1, self.in_features))[0]

    def _compose_cached(self, weight_mn: Tensor, delta_R: Tensor) -> tuple[Tensor, bool]:
        """W' and whether some |z| is tiny, composed anew when z or W is not what it was."""
        weight_key = (weight_mn.data_ptr(), weight_mn._version)
        if self._composed is not None:
            of_weight, of_delta_R, composed_mn, tiny_z = self._composed
            # z by value: an optimizer that writes through `.data` (DeepSpeed) leaves version counters as they were.
            if of_weight == weight_key and composed_mn.device == delta_R.device and torch.equal(of_delta_R, delta_R):
                return composed_mn, tiny_z
        with torch.no_grad():
            composed_mn = forms.compose_weight(weight_mn, self.svf_basis, delta_R, self.side)
            tiny_z = bool(((1 + delta_R).abs() < forms.TINY_Z).any())
        self._composed = (weight_key, delta_R.detach().clone(), composed_mn, tiny_z)
        return composed_mn, tiny_z

    # Forms and merging

    def weight_mn(self) -> Tensor:
        """The base W (m, n), a view, whether or not adapters are merged into the layer.

        Raises:
            ConfigError: The base layer is quantised or otherwise opaque.
        """
        weight = dense_weight(self.base_layer)
        if weight is None:
            raise ConfigError(
                f"{type(self.base_layer).__name__} is quantised, shared out or opaque: its weight cannot be factored "
                "or merged; use form='delta', or load the base model unquantised"
            )
        if self._unmerged_weight is not None:
            return self._unmerged_weight.T if isinstance(self.base_layer, Conv1D) else self._unmerged_weight
        return weight

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for models that look at it: at its dtype mostly, see SVFModel for the others."""
        self.weight_was_read = True
        return super().weight

    @property
    def scaling(self) -> dict[str, int]:
        """1 for every adapter: see peft.utils.hotswap."""
        return dict.fromkeys(self.svf_z, 1)

    def is_dense_fp32(self) -> bool:
        """Whether W is a plain fp32 matrix."""
        weight = dense_weight(self.base_layer)
        return weight is not None and weight.dtype == torch.float32

    def set_form(self, form: str) -> None:
        """Switch the form of the forward pass; "auto" takes the exact one.

        Raises:
            ConfigError: Unknown form, or one that this base layer cannot have.
        """
        if form not in FORMS:
            raise ConfigError(f"form={form!r} is not one of {', '.join(FORMS)}")
        opaque = dense_weight(self.base_layer) is None
        if form == "auto":
            form = forms.choose_form(quantised=opaque)
        factor = None
        if form == "factored":
            with torch.no_grad():
                factor = forms.factor_weight(self.weight_mn(), self.svf_basis, self.side)
        elif form == "merged":
            self.weight_mn()
        self._parameters["svf_factor"] = None if factor is None else nn.Parameter(factor, requires_grad=False)
        self._composed = None
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
        """Put back the very W that was there before `merge`."""
        self.__dict__.pop("forward", None)
        if self._unmerged_weight is None:
            return
        stored, device = self._unmerged_weight, cast(nn.Parameter, self.base_layer.weight).device
        if stored.device != device:  # the model was moved in the meantime
            stored.data = stored.data.to(device)
        self.base_layer.weight = stored
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
        return f"side={self.side}, r={min(self.in_features, self.out_features)}, form={self.form}"


def dense_weight(layer: nn.Module) -> Tensor | None:
    """W (m, n) of a layer that is x W^T + b with a plain floating W, as a view; None for quantised or other layers.

    Also None for a W that is shared out among processes and not gathered at the moment (ZeRO-3).
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
    device, dtype = _compute_device_and_dtype(layer)
    zeros = torch.zeros(1, features[0], device=device, dtype=dtype)
    units = torch.eye(features[0], device=device, dtype=dtype)
    return (layer(units).float() - layer(zeros).float()).T


def _compute_device_and_dtype(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a layer is, and the dtype it multiplies in."""
    tensors = [t for t in (*layer.parameters(), *layer.buffers()) if isinstance(t, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    weight = dense_weight(layer)
    dtype = weight.dtype if weight is not None else getattr(layer, "compute_dtype", None)
    if not isinstance(dtype, torch.dtype):
        floating = [t.dtype for t in tensors if t.is_floating_point() and t.element_size() >= 2]
        dtype = floating[0] if floating else torch.get_default_dtype()
    return device, dtype


def _call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    return layer(x, *args, **kwargs)


def _amp_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
