"""`quantization_config` as people write it -> the object that transformers loads with, checked.

    {load_in_4bit: true, bnb_4bit_quant_type: nf4}              bitsandbytes, as in a model's config.json
    {load_in_8bit: true}
    {quant_method: torchao, quant_type: Int8WeightOnlyConfig}   torchao, a class of torchao.quantization by its name

Departures from transformers, which drops a misspelt key without a word (the model is then fp4 instead of nf4), takes
torchao's types as objects only, and lets 4-bit layers multiply in fp32 whatever the model's dtype is. Other methods
(gptq, quanto, ...) are handed on as they are.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from transformer2.errors import ConfigError, nearest

__all__ = ["quantization_config"]

_KEY = "model.model_kwargs.quantization_config"


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
    options = dict(given)
    if any(options.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        options.setdefault("quant_method", "bitsandbytes")
    method = options.get("quant_method")
    if method not in ("bitsandbytes", "torchao"):
        return options
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
        raise ConfigError(f"{_KEY}: {str(e).strip().splitlines()[0]}") from e


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
            f"{_KEY}.quant_type {given!r} is no config of torchao.quantization{nearest(str(given), classes)}"
        )
    return {"default": config_to_dict(classes[given]())}
