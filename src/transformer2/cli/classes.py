"""Classes that a config names for the trainer: one line for what jsonargparse explains in forty."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger

from transformer2.arguments import written
from transformer2.errors import ConfigError, nearest

# Where a name without a module is looked up, as jsonargparse does.
KINDS = {"callbacks": (Callback, lightning_callbacks), "logger": (Logger, lightning_loggers)}


def check_classes(trainer: Mapping[str, Any]) -> None:
    """Check `callbacks` and `logger` of a trainer's config.

    Raises:
        ConfigError: A class that is not there or of another kind, or an argument that it does not take.
    """
    for key in KINDS:
        given = trainer.get(key)
        for entry in given if isinstance(given, list) else [given]:
            path = entry.get("class_path") if isinstance(entry, dict) else entry
            if isinstance(path, str):
                _check(key, path, (isinstance(entry, dict) and entry.get("init_args")) or {})


def class_of(entry: Any, key: str = "callbacks") -> Any:
    """The class, or the function that makes one, of an entry of a checked config: a path, or a `class_path`."""
    path, (kind, home) = entry["class_path"] if isinstance(entry, Mapping) else entry, KINDS[key]
    module, _, name = path.rpartition(".")
    if module or hasattr(home, name):
        return getattr(importlib.import_module(module) if module else home, name)
    return {c.__name__: c for c in _subclasses(kind)}[name]


def _check(key: str, path: str, given: Mapping[str, Any]) -> None:
    kind = KINDS[key][0]
    try:
        cls = class_of(path, key)
    except (ImportError, AttributeError, LookupError, ValueError) as e:
        near = nearest(path.rpartition(".")[2], {c.__name__ for c in _subclasses(kind)}, 0.6)
        raise ConfigError(f"trainer.{key}: there is no class {written(path)}{near or '; give module.Class'}") from e
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        makes_one = inspect.isfunction(cls) and "return" in inspect.get_annotations(cls)
        if makes_one:  # which jsonargparse calls
            return
        raise ConfigError(f"trainer.{key}: {written(path)} is not a {kind.__name__.lower()}")
    parameters = inspect.signature(cls).parameters
    for argument in given:
        if argument not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            hint = nearest(argument, parameters, 0.6) or f"; it takes {', '.join(parameters) or 'none'}"
            raise ConfigError(f"trainer.{key}: {cls.__name__} takes no {argument}{hint}")


def _subclasses(kind: type) -> set[type]:
    direct: set[type] = set(kind.__subclasses__())
    return direct.union(*map(_subclasses, direct))
