"""How all SVF layers of a model run: their form, merged for rollouts, factored for choices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from transformer2.errors import ConfigError
from transformer2.svf.layer import SVFLayer, dense_weight, svf_layers
from transformer2.svf.open_rows import Rows

__all__ = ["factored_for_choice", "merged_for_rollout", "set_form"]


def set_form(model: nn.Module, form: str) -> None:
    """Switch the form of every SVF layer ("delta" or "factored"); z stays as it is.

    Raises:
        ConfigError: Unknown form, one that a quantised layer cannot have (no layer is changed then), or no SVF layer.
    """
    layers = [layer for _, layer in svf_layers(model)]
    if not layers:
        raise ConfigError("this model has no SVF layers; wrap it with get_peft_model(model, SVFConfig()) first")
    if form == "factored":
        for layer in layers:
            layer.weight_mn()  # refuses before the first layer is changed
    for layer in layers:
        layer.set_form(form)


@contextmanager
def merged_for_rollout(model: nn.Module, tokens: float = math.inf) -> Iterator[bool]:
    """Generate under the active z at the base model's speed: W' is composed into the weights, W restored at the end.

    Inside, calls go straight to the base layers. Where merging is not possible or not exact (quantised or sharded
    bases, other tuners, adapters switched off, an open `z_rows`, already merged) nothing is done and the model runs as
    it is. Afterwards, errors included, the original parameters are back.

    Args:
        model: The model.
        tokens: How many will be run, at most. On a CPU, where time follows multiplications, running a few in the form
            of training takes less than composing W' for them.

    Yields:
        Whether the weights are merged inside.
    """
    layers = [layer for _, layer in svf_layers(model)]
    if not layers or not all(_can_merge(layer) for layer in layers) or not _pays(layers, tokens):
        yield False
        return
    try:
        for layer in layers:
            layer.merge()
        for layer in layers:
            layer.bypass()
        yield True
    finally:
        for layer in layers:
            layer.unmerge()


@contextmanager
def factored_for_choice(model: nn.Module) -> Iterator[None]:
    """Inside, rows of different z cost 1 + rho instead of 1 + 2 rho: fp32 layers in the delta form run factored.

    For scores that choose something, not for those that are reported: z = 1 is then the base up to rounding. Layers of
    lower precision (which would lose small z - 1) and quantised ones stay as they are.
    """
    weights = ((layer, dense_weight(layer.base_layer)) for _, layer in svf_layers(model) if layer.form == "delta")
    layers = [layer for layer, weight in weights if weight is not None and weight.dtype == torch.float32]
    try:
        for layer in layers:
            layer.set_form("factored")
        yield
    finally:
        for layer in layers:
            layer.set_form("delta")


def _pays(layers: Sequence[SVFLayer], tokens: float) -> bool:
    """Whether composing W' multiplies less than the form of training does beside W for so many tokens."""
    if layers[0].svf_basis.device.type != "cpu":
        return True
    composing = extra = 0.0
    for layer in layers:
        step = layer.r * layer.r
        # In fp32, which takes twice as long as 16 bits where a processor multiplies those.
        composing += step * (layer.r + max(layer.in_features, layer.out_features)) * 4 / layer.svf_basis.element_size()
        extra += (2 if layer.form == "delta" else 1) * step
    return composing < extra * tokens


def _can_merge(layer: SVFLayer) -> bool:
    if layer.disable_adapters or layer.merged or Rows.open_anywhere(layer) or hasattr(layer.svf_basis, "ds_id"):
        return False
    weight_mn = dense_weight(layer.base_layer)
    return weight_mn is not None and not weight_mn.is_meta
