"""A base that was loaded quantised: where it came from, how it is called, and what training needs of it.

W is a black box to the delta form, so packed layers work as they are. But entry i of an expert belongs to the i-th
singular value of the W that was *stored*, and rounding turns neighbouring singular vectors into each other. So the
bases of a quantised model are those of the unquantised weights, read from its checkpoint one matrix at a time, or found
in the basis cache: experts of both kinds of base are experts of one model. Only a checkpoint that holds packed weights
itself leaves nothing but the packed matrix to decompose.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from transformer2.errors import BasisError, ConfigError
from transformer2.quantisation import quantisation_of
from transformer2.svf.checkpoint import LocalCheckpoint

__all__ = [
    "base_model",
    "check_gradient",
    "keep_differentiable",
    "quantisation_name",
    "unquantised_checkpoint",
]


def quantisation_name(model: nn.Module) -> str | None:
    """`Quantisation.name` of a model's weights; None for a dense model.

    Args:
        model: A transformers model, with or without PEFT adapters.
    """
    quantisation = quantisation_of(_quantization_config(model))
    return None if quantisation is None else quantisation.name


def unquantised_checkpoint(model: nn.Module) -> LocalCheckpoint | None:
    """The files of the weights that a quantised model was made from, read in the dtype the model computes in.

    Args:
        model: A transformers model without adapters.

    Returns:
        None for a dense model, and where there are no such files: a checkpoint that is quantised itself, is not on this
        machine or not in safetensors, or whose weights transformers fuses or renames at load.
    """
    if _quantization_config(model) is None:
        return None
    try:
        checkpoint = LocalCheckpoint.of_model(model, cast(PreTrainedModel, model).dtype)
        return checkpoint if checkpoint and checkpoint.complete and not checkpoint.quantised else None
    except BasisError:  # without a config.json, not in safetensors, or a class that only its own code can build
        return None


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit layers on the CPU.

    On processors with AVX512-BF16 it does so at a layer's first forward pass without gradients (the first rollout), and
    a repacked layer multiplies in bf16 and passes no gradient back, with a warning only.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # bitsandbytes' own switch


def check_gradient(model: nn.Module) -> None:
    """Send one token's gradient back through every linear layer of a quantised model.

    What is_trainable says of a quantiser is not enough: torchao's dynamically quantised activations are said to train.

    Raises:
        ConfigError: A layer passes none; the message names it and what can be trained.
    """
    if _quantization_config(model) is None:
        return
    for name, layer in model.named_modules():
        if not _is_packed_linear(layer):
            continue
        weight: Any = layer.weight
        x_1n = torch.ones(1, layer.in_features, device=weight.device, dtype=base_model(model).dtype, requires_grad=True)
        with torch.enable_grad():
            total = layer(x_1n).float().sum()
        grad = torch.autograd.grad(total, x_1n, allow_unused=True)[0] if total.requires_grad else None
        if grad is None or not bool(grad.any()):
            raise ConfigError(
                f"the {quantisation_name(model)} base passes no gradient back through {name} "
                f"({type(layer).__name__}, {type(weight).__name__}), so it cannot be trained on; train on the base of "
                "conf/quantisation/nf4.yaml or int8.yaml, or on a dense one: the expert runs on this base too"
            )


def _is_packed_linear(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    wraps = hasattr(layer, "base_layer")  # a tuner's layer shows the weight of the one inside
    if wraps or not isinstance(weight, nn.Parameter) or not isinstance(getattr(layer, "in_features", None), int):
        return False
    return not weight.is_floating_point() or type(weight.data) is not torch.Tensor


def _quantization_config(model: nn.Module) -> Any:
    return getattr(getattr(base_model(model), "config", None), "quantization_config", None)


def base_model(model: nn.Module) -> Any:
    """The transformers model inside a PeftModel; any other module is its own base."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model
