"""One z per row of a batch: mixed requests, a CEM population and base rows go through one forward pass.

Row b mixes the experts by weights w[b] of its own (svf/mixing.py). Under mix="delta" a row of zeros is the base model:
bit for bit in the delta form, to rounding in the factored one.

Departure from the reference code: it recomposes the weights for every candidate and runs them one after the other;
here candidates are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from transformer2.errors import ConfigError, UserError
from transformer2.svf.forms import spread_rows
from transformer2.svf.layer import SVFLayer, svf_layers
from transformer2.svf.mixing import mix_deltas
from transformer2.svf.open_rows import Rows
from transformer2.svf.register import register_after

__all__ = ["batch_rows", "check_loaded", "check_only_z", "has_rows", "rows_by_name", "z_rows"]


@contextmanager
def z_rows(
    model: nn.Module,
    weights_BK: Tensor | Sequence[Sequence[float]],
    experts: Sequence[str],
    mix: Literal["delta", "raw"] = "delta",
) -> Iterator[None]:
    """Inside, row b of every batch runs under its own mixture of experts. May be nested; the inner one counts.

    It holds for the thread and the asyncio task that opened it, as torch.no_grad() does: a thread that is started
    inside opens its own (or calls `policy.generate(adapter_names=[...])`), and several may serve one model at once.

    Works with `generate`: where a batch is a multiple of B (several sequences or beams per prompt), every row's z
    serves its run of repeats. With `disable_adapter()` inside, every row is the base model.

    Args:
        model: A model with SVF adapters.
        weights_BK: (B, K) numbers, or (L, B, K): one set per tuned matrix, in module order.
        experts: Names of K loaded adapters. A matrix that an expert does not tune counts as z_k = 1; one that none of
            them tunes stays the base's.
        mix: See svf/mixing.py.

    Raises:
        UserError: Unknown expert or mix, weights of another shape or non-finite, adapters merged into the weights, or
            with `modules_to_save`; inside, a batch whose size is not a multiple of B; at the end, another `z_rows` that
            is still open inside.
    """
    check_only_z(model, experts)
    with _rows(model, weights_BK, experts, mix):
        yield


def _rows(
    model: nn.Module,
    weights_BK: Tensor | Sequence[Sequence[float]],
    experts: Sequence[str],
    mix: Literal["delta", "raw"] = "delta",
) -> Rows:
    layers = [layer for _, layer in svf_layers(model)]
    weights = torch.as_tensor(weights_BK, dtype=torch.float32)
    _check(layers, weights, experts, mix)
    per_layer = weights if weights.ndim == 3 else weights.expand(len(layers), *weights.shape)

    def mixed(layer: SVFLayer, weights_BK: Tensor) -> Tensor:
        tuned = any(name in layer.svf_z for name in experts)  # else the sum of raw weights would scale its matrix
        return mix_deltas(weights_BK, [layer.detached_delta([name]) for name in experts], mix if tuned else "delta")

    return Rows({layer: mixed(layer, weights_BK) for layer, weights_BK in zip(layers, per_layer, strict=True)})


def check_only_z(model: nn.Module, experts: Sequence[str] = (), active: bool = True) -> None:
    """Refuse to mix adapters that trained modules whole, or rows beside them: all rows would run through those modules.

    Args:
        model: A model with SVF adapters.
        experts: Names of adapters.
        active: The active adapters, too.

    Raises:
        UserError: With the adapter and its modules.
    """
    beside = {name for _, layer in svf_layers(model) for name in layer.active_adapters} if active else ()
    for name in sorted({*experts, *beside}):
        if whole := getattr(getattr(model, "peft_config", {}).get(name), "modules_to_save", None):
            raise UserError(
                f"adapter {name!r} has modules trained whole ({', '.join(whole)}), which cannot be mixed; train it "
                "without modules_to_save, or run it alone (set_adapter; adapter_names for one adapter per row)"
            )


def check_loaded(tuner: BaseTuner, names: Iterable[str]) -> None:
    """Refuse names of adapters that are not there, which PEFT would pass over: the base would answer for them.

    Raises:
        ConfigError: With those that are there.
    """
    if unknown := sorted({*names} - {*tuner.peft_config}):
        raise ConfigError(f"non-existing adapter(s): {', '.join(unknown)}; loaded: {', '.join(tuner.peft_config)}")


def has_rows(model: nn.Module) -> bool:
    """Whether the model is inside `z_rows`."""
    return any(Rows.of(layer) is not None for _, layer in svf_layers(model))


@contextmanager
def batch_rows(model: nn.Module, size: int) -> Iterator[Callable[[Tensor], None]]:
    """For samplers that reorder, split or shrink a batch under an open `z_rows`; without one it does nothing.

    Args:
        model: A model with SVF adapters.
        size: Rows of the whole batch; a multiple of the rows of `z_rows`, which repeat in place.

    Yields:
        `select(index)`: from now on the batch holds these rows of the whole one, int64 (n,), in this order.

    Raises:
        UserError: The batch is not a multiple of the rows of `z_rows`.
    """
    outer = {layer: rows_BR for _, layer in svf_layers(model) if (rows_BR := Rows.of(layer)) is not None}
    whole = {layer: spread_rows(rows_BR, rows_BR.new_empty(size, 1)) for layer, rows_BR in outer.items()}
    rows = Rows(whole)

    def select(index: Tensor) -> None:
        rows.deltas = {layer: rows_BR[index.to(rows_BR.device)] for layer, rows_BR in whole.items()}

    with rows:
        yield select


@contextmanager
def rows_by_name(
    tuner: BaseTuner, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """PEFT's `adapter_names`: inside, row b of this call's batch runs under the adapter names[b], `__base__` for none.

    Raises:
        ConfigError: As PEFT refuses them for LoRA: unknown names, too many or too few, training mode.
        UserError: Adapters are merged.
    """
    if tuner.training:
        raise ConfigError("Cannot pass `adapter_names` when the model is in training mode; call eval() first")
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"adapter_names={names!r} must be a list of names, one per row of the batch")
    check_loaded(tuner, {*names} - {"__base__"})

    def check(_: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        inputs = (*args[:1], *(kwargs.get(key) for key in ("inputs", "input_ids", "inputs_embeds")))
        rows = next((len(x) for x in inputs if isinstance(x, Tensor)), None)
        if rows is not None and rows != len(names):
            raise ConfigError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(names)} and "
                f"{rows} respectively."
            )

    def pass_on(_: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        repeats = len(args[0]) // len(names)
        return args, {**kwargs, "adapter_names": [name for name in names for _ in range(repeats)]}

    experts = sorted({*names} - {"__base__"}) or [next(iter(tuner.peft_config))]
    with ExitStack() as stack:
        check(None, args, kwargs)
        if not args and not {"inputs", "input_ids", "inputs_embeds"} & kwargs.keys():
            # PEFT keeps the inputs of a forward pass to itself: the model sees them first.
            stack.callback(tuner.model.register_forward_pre_hook(check, with_kwargs=True).remove)
        for module in tuner.model.modules():  # what is trained whole alongside z
            if isinstance(module, AuxiliaryTrainingWrapper):
                stack.callback(module.register_forward_pre_hook(pass_on, with_kwargs=True).remove)
        weights = [[float(name == expert) for expert in experts] for name in names]
        if weights:
            stack.enter_context(_rows(tuner.model, weights, experts))
        yield


def _check(layers: list[SVFLayer], weights: Tensor, experts: Sequence[str], mix: str) -> None:
    if mix not in ("delta", "raw"):
        raise UserError(f"mix={mix!r} is not one of delta, raw")
    known = {name for layer in layers for name in layer.svf_z}
    for name in experts:
        if name not in known:
            raise UserError(f"unknown expert {name!r}; loaded: {', '.join(sorted(known)) or 'none'}")
    if weights.ndim not in (2, 3) or weights.shape[-1] != len(experts) or not weights.numel():
        raise UserError(
            f"weights of shape {tuple(weights.shape)} for {len(experts)} experts; give (rows, {len(experts)}) numbers"
        )
    if weights.ndim == 3 and weights.shape[0] != len(layers):
        raise UserError(f"weights for {weights.shape[0]} matrices, this model has {len(layers)} tuned ones")
    if not bool(torch.isfinite(weights).all()):
        raise UserError("weights have non-finite entries; every row needs finite numbers")
    if any(layer.merged for layer in layers):
        raise UserError("adapters are merged into the weights, so rows cannot differ; call unmerge_adapter() first")


register_after(__name__)
