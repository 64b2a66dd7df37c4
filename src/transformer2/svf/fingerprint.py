"""Which base model is this? "<arch>:<weights>", the same for the same weights whatever their folder is called.

* arch: model type, attention geometry (of several modalities: the language model's), and the name and logical shape of
  every weight (packed 4-bit weights count with their logical shape).
* weights: a hash over up to 8 x 64 values of every parameter, in the dtype they were loaded in. The same model loaded
  in another dtype has another weights part. A hash of a sample cannot see a single changed weight; any training step
  it does.

A model that was quantised as it was loaded has the fingerprint of the model it was made from, read from its files: the
same experts and bases belong to both. One that exists only quantised has its packed weights' own.

Adapters do not count: their own parameters are skipped, wrapped layers are read through, and where SVF is merged W
itself is read. Another method's *merged* adapter has changed the base weights: take the fingerprint before merging.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from transformer2.errors import BasisError, shown
from transformer2.svf.checkpoint import LocalCheckpoint
from transformer2.svf.quantised import base_model, quantisation_name, unquantised_checkpoint

__all__ = ["fingerprint", "fingerprint_checkpoint", "warn_of_another_base"]

_ROWS, _COLUMNS = 8, 64
# Short on purpose: library defaults come and go in `config.to_dict()`, and an expert must outlive an upgrade.
_CONFIG_KEYS = ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_act", "activation_function")


def fingerprint(model: nn.Module) -> str:
    """The fingerprint of a model's base weights.

    Args:
        model: A transformers model, with or without PEFT adapters (on it or around it); any `nn.Module` works.

    Returns:
        "<arch>:<weights>", 16 hex digits each.

    Raises:
        BasisError: The weights cannot be read here (meta device, sharded) and the model does not know its folder.
    """
    base = base_model(model)
    checkpoint = unquantised_checkpoint(base)
    if checkpoint is not None:
        return fingerprint_checkpoint(checkpoint)
    config = getattr(base, "config", None)
    named = list(_base_parameters(base))
    arch = _arch(config, ((name, shape) for name, _, shape in named))
    held = [(name, p) for name, p, _ in named if p is not None]
    if any(p.is_meta or hasattr(p, "ds_shape") or hasattr(p, "placements") for _, p in held):
        # Under ZeRO-3 or as DTensors a rank holds a shard of each weight; the model's folder holds them whole.
        dtypes = [p.dtype for _, p in held if p.dtype.is_floating_point]
        checkpoint = LocalCheckpoint.of_model(base, max(set(dtypes), key=dtypes.count))
        if checkpoint is None:
            raise BasisError(
                "the base weights are on the meta device or sharded and the model's folder is unknown; "
                "pass base as a local folder so that its fingerprint can be read from the files"
            )
        return fingerprint_checkpoint(checkpoint)
    return f"{arch}:{_weights((name, _sample(p.detach())) for name, p in held)}"


def warn_of_another_base(experts: Mapping[str, tuple[str | None, str | None]], model: nn.Module) -> None:
    """Note which experts were trained on another base than this model, or at another precision.

    They run all the same: other weights of one architecture are an experiment (paper, Table 5), but a surprise when it
    was not meant as one. `experts`: name -> its base's fingerprint and `quantisation_name`.
    """
    try:
        ours = fingerprint(model) if any(theirs for theirs, _ in experts.values()) else ""
    except BasisError:  # on the meta device, or sharded, from an unknown folder
        return
    arch, precision = ours.partition(":")[0], quantisation_name(model)
    for name, (theirs, _) in experts.items():
        if theirs and theirs != ours:
            given = theirs.partition(":")[0]
            what = (
                "other weights (or another dtype) than this base"
                if given == arch
                else f"a base model of another architecture ({shown(given, 40)}, this one is {arch})"
            )
            warnings.warn(
                f"{name}: trained on {what}; entry i of z now scales the i-th largest singular value of these weights",
                stacklevel=3,
            )
    others = [f"{name} ({theirs or 'unquantised'})" for name, (_, theirs) in experts.items() if theirs != precision]
    if others:
        warnings.warn(
            f"{', '.join(others)}: trained at another precision than this base ({precision or 'unquantised'}); "
            "docs/quantised.md says what that costs",
            stacklevel=3,
        )


def fingerprint_checkpoint(checkpoint: LocalCheckpoint) -> str:
    """The fingerprint of a model's files, from config.json and a few rows of each tensor; the model is never loaded.

    Equal to `fingerprint` of the model loaded from there in the same dtype. Not so, and refused or different: models
    whose weights transformers fuses or renames at load (BasisError), and modules it keeps in fp32 whatever the dtype.

    Raises:
        BasisError: Unreadable files, or a parameter without a tensor in them.
    """
    named = list(_base_parameters(checkpoint.skeleton))
    arch = _arch(checkpoint.skeleton.config, ((name, shape) for name, _, shape in named))

    def sample(name: str) -> Tensor:
        values = _sample(checkpoint.read_rows(checkpoint.key_of(name), lambda count: _spread(count, _ROWS)))
        return values.to(checkpoint.dtype) if values.is_floating_point() else values

    return f"{arch}:{_weights((name, sample(name)) for name, parameter, _ in named if parameter is not None)}"


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor | None, tuple[int, ...]]]:
    """(name, parameter, logical shape) of the weights a model has without its adapters, under their own names, once
    each.

    The parameter is None for packed weights that are no parameters (GPTQ, AWQ): only their shape is known.
    """
    seen: set[int] = set()

    def walk(
        module: nn.Module, prefix: str, unmerged: Tensor | None = None
    ) -> Iterator[tuple[str, Tensor | None, tuple[int, ...]]]:
        # PEFT wraps a layer as `base_layer` and a fully trained one as `original_module`; everything else in it is the
        # adapter's.
        for inner in ("base_layer", "original_module"):
            wrapped = getattr(module, inner, None)
            if isinstance(wrapped, nn.Module):
                yield from walk(wrapped, prefix, getattr(module, "unmerged_weight", None))
                return
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if unmerged is not None:
            own["weight"] = unmerged
        features = (getattr(module, "out_features", None), getattr(module, "in_features", None))
        linear = all(isinstance(f, int) for f in features)
        for name, parameter in own.items():
            if id(parameter) not in seen:  # a tied weight counts once
                seen.add(id(parameter))
                shape = features if linear and name == "weight" else getattr(parameter, "ds_shape", parameter.shape)
                yield prefix + name, parameter, tuple(shape)  # type: ignore[arg-type]
        if linear and "weight" not in own:
            yield prefix + "weight", None, features  # type: ignore[misc]
        for name, child in module.named_children():
            yield from walk(child, f"{prefix}{name}.")

    yield from walk(model, "")


def _arch(config: Any, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    geometry = {key: getattr(text, key, None) for key in _CONFIG_KEYS}
    geometry["model_type"] = getattr(config, "model_type", None)
    text = json.dumps([geometry, sorted((name, list(shape)) for name, shape in shapes)], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights(samples: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(samples, key=lambda pair: pair[0]):
        digest.update(f"{name} {values.dtype}\n".encode())
        digest.update(values.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor) -> Tensor:
    """Values spread over a tensor: up to 64 of each of up to 8 rows, 1-D."""
    if type(tensor) is not Tensor and tensor.is_floating_point():
        tensor = tensor.dequantize()  # torchao's packed tensors cannot be indexed
    rows = tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    row_S = torch.tensor(_spread(rows.shape[0], _ROWS), device=rows.device, dtype=torch.long)
    column_S = torch.tensor(_spread(rows.shape[1], _COLUMNS), device=rows.device, dtype=torch.long)
    return rows[row_S][:, column_S].flatten()


def _spread(size: int, count: int) -> list[int]:
    """Up to `count` indices from 0 to size - 1, evenly spaced."""
    count = min(size, count)
    return [i * (size - 1) // max(count - 1, 1) for i in range(count)]
