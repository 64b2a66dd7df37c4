"""The registry of tasks: one file each, imported when first asked for."""

from __future__ import annotations

import importlib
from pathlib import Path

from transformer2.errors import ConfigError, nearest
from transformer2.tasks.base import Task

__all__ = ["Task", "get", "names"]


def names() -> list[str]:
    """Names of the tasks that ship with the package, sorted."""
    files = (p.stem for p in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in files if name != "base" and not name.startswith("_"))


def get(name: str) -> Task:
    """The task of that name (`gsm8k`, `tiny_math`, ...) or of that class path (`mypackage.mytask.MyTask`).

    Raises:
        ConfigError: Unknown name; the message says the nearest one.
    """
    if name in names():
        return importlib.import_module(f"transformer2.tasks.{name}").TASK()
    if "." in name:
        module, _, cls = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), cls)()
        except (ImportError, AttributeError) as e:
            raise ConfigError(f"task {name!r} cannot be imported ({e}); give the full path of a Task class") from e
    raise ConfigError(f"unknown task {name!r}{nearest(name, names())} Known: {', '.join(names())}")
