"""`quantization_config` as people write it: what it makes of the weights, and the object that transformers loads with.

    {load_in_4bit: true, bnb_4bit_quant_type: nf4}              bitsandbytes, as in a model's config.json
    {load_in_8bit: true}
    {quant_method: torchao, quant_type: Int8WeightOnlyConfig}   torchao, a class of torchao.quantization by its name

Departures from transformers, which silently drops a misspelt key (the model is then fp4 instead of nf4), takes
torchao's types as objects only, and lets 4-bit layers multiply in fp32 whatever the model's dtype is. Other methods
(gptq, quanto, ...) are handed on as they are.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformer2.errors import ConfigError, nearest, one_line

if TYPE_CHECKING:
    import torch

__all__ = ["KINDS", "Quantisation", "quantisation_of", "quantization_config"]

_KEY = "model.model_kwargs.quantization_config"


@dataclass(frozen=True)
class Quantisation:
    """How the linear layers of a base are stored.

    Attributes:
        method: `bitsandbytes`, `torchao`, or another of transformers' (`gptq`, ...).
        bits: Of a weight, without its scales; None where the config does not say.
        type: Of the numbers, where the method has several: `nf4`, `fp4`, a class of torchao's.
        double: Whether the scales of 4-bit weights are quantised too.
    """

    method: str
    bits: int | None
    type: str | None = None
    double: bool = True

    @property
    def name(self) -> str:
        """`nf4`, `fp4`, `int8` (bitsandbytes), `torchao Int8WeightOnlyConfig`, `gptq`, ...; saved with experts."""
        if self.method == "bitsandbytes":
            return self.type or ("int8" if self.bits == 8 else self.method)
        return f"{self.method} {self.type}" if self.type else self.method

    @property
    def bytes_per_weight(self) -> float | None:
        """Of a linear layer.

        4 bits as in bitsandbytes: an fp32 scale per 64 weights or, with double quantisation, an 8-bit one, and an fp32
        one per 256 of those. The one fp32 scale per row of 8 bits is left out.
        """
        if self.bits == 4:
            return 0.5 + (1 / 64 + 4 / (64 * 256) if self.double else 4 / 64)
        return self.bits and self.bits / 8


KINDS: dict[str, Quantisation | None] = {  # by their names in conf/quantisation/
    "none": None,
    "nf4": Quantisation("bitsandbytes", 4, "nf4"),
    "int8": Quantisation("bitsandbytes", 8),
    "torchao_int8": Quantisation("torchao", 8, "Int8WeightOnlyConfig"),
}


def quantisation_of(config: Any) -> Quantisation | None:
    """What a `quantization_config` makes of the weights; None where it makes nothing of them.

    Args:
        config: As `quantization_config` below takes it, or as a quantised checkpoint's config.json says it.
    """
    if not config:
        return None
    options = config if isinstance(config, Mapping) else config.to_dict()
    switched = 4 if options.get("load_in_4bit") else 8 if options.get("load_in_8bit") else None
    method = options.get("quant_method") or ("bitsandbytes" if switched else "unknown")
    method = str(getattr(method, "value", method))  # an enum in transformers' own objects
    if method == "bitsandbytes" and switched == 4:  # with the defaults of transformers
        type_, double = options.get("bnb_4bit_quant_type") or "fp4", options.get("bnb_4bit_use_double_quant")
        return Quantisation(method, switched, str(type_), bool(double))
    if method == "bitsandbytes":
        return Quantisation(method, switched)
    if method != "torchao":
        return Quantisation(method, bits if isinstance(bits := options.get("bits"), int) else None)
    kind = options.get("quant_type")
    if isinstance(kind, Mapping):  # as `_torchao_type` gives it, and a saved config.json
        kind = kind.get("default", {}).get("_type")
    if kind is not None and not isinstance(kind, str):
        kind = type(kind).__name__
    of_weights = re.search(r"int(\d)_?weight", kind or "", re.IGNORECASE)
    return Quantisation(method, int(of_weights[1]) if of_weights else None, kind)


def quantization_config(given: Any, dtype: torch.dtype) -> Any:
    """What to hand to `from_pretrained`.

    Args:
        given: A mapping as above, or an object of transformers' own, which is handed on.
        dtype: Of the base: what 4-bit layers multiply in where `given` does not say.

    Raises:
        ConfigError: A key or value that the method does not know, or its package is not installed.
    """
    if not isinstance(given, Mapping):
        return given
    quantisation, options = quantisation_of(given), dict(given)
    if quantisation is None or (method := quantisation.method) not in ("bitsandbytes", "torchao"):
        return options
    options["quant_method"] = method
    if importlib.util.find_spec(method) is None:
        raise ConfigError(f"{_KEY} needs {method}: pip install -c constraints.txt -e '.[quantised]'")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    cls = BitsAndBytesConfig if method == "bitsandbytes" else TorchAoConfig
    known = [name for name, p in inspect.signature(cls).parameters.items() if p.kind != p.VAR_KEYWORD]
    for key in options:
        if key not in (*known, "quant_method"):
            raise ConfigError(f"unknown key {_KEY}.{key} for {method}{nearest(key, known)}")
    if method == "torchao":
        options["quant_type"] = _torchao_type(options.get("quant_type"))
    elif options.get("load_in_4bit"):
        options.setdefault("bnb_4bit_compute_dtype", dtype)
    try:
        return cls.from_dict(options)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{_KEY}: {one_line(e)}") from e


def _torchao_type(given: Any) -> Any:
    """torchao's own serialised form {default: {_type, _data, _version}}, from a class's name or as given."""
    if isinstance(given, Mapping) and "default" in given:
        return given
    import torchao.quantization
    from torchao.core.config import AOBaseConfig, config_to_dict

    classes = {
        name: cls
        for name, cls in vars(torchao.quantization).items()
        if inspect.isclass(cls) and issubclass(cls, AOBaseConfig) and cls is not AOBaseConfig
    }
    if given not in classes:
        raise ConfigError(
            f"{_KEY}.quant_type {given!r} is not a config of torchao.quantization{nearest(str(given), classes)}"
        )
    return {"default": config_to_dict(classes[given]())}
