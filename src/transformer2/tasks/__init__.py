"""The registry of tasks: one file each, imported when first asked for."""

from __future__ import annotations

import importlib
import inspect
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformer2.errors import ConfigError, nearest
from transformer2.tasks.base import Task

__all__ = ["Task", "get", "names"]

OWN = "a task of your own is a class, named module.Class (docs/tasks.md)"


def names() -> list[str]:
    """Names of the tasks that ship with the package, sorted."""
    files = (p.stem for p in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in files if name != "base" and not name.startswith("_"))


def get(name: str, **options: Any) -> Task:
    """The task of that name (`gsm8k`, `tiny_math`, ...) or of that class path (`mypackage.mytask.MyTask`).

    Args:
        name: Name or class path.
        options: Arguments of the task's constructor.

    Raises:
        ConfigError: Unknown name or option (the message says the nearest one), or a class that is not a whole task.
    """
    cls = _find(name)
    signature = inspect.signature(cls)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        known = list(signature.parameters)
        for option in options:
            if option not in known:
                most = "; it takes none" if not known else "; it takes none but system and prompt"
                hint = most if set(known) <= {"system", "prompt"} else nearest(option, known)
                raise ConfigError(f"task {name!r} has no option {option!r}{hint}")
    try:
        signature.bind(**options)
    except TypeError as e:
        raise ConfigError(f"task {name!r}: {e}; give it in task_options") from e
    return cls(**options)


def _find(name: str) -> type[Task]:
    if name in names():
        cls: type[Task] = importlib.import_module(f"transformer2.tasks.{name}").TASK
        return cls
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"{OWN}."
        raise ConfigError(f"unknown task {name!r}; {hint} Known: {', '.join(names())}")
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as e:
        raise ConfigError(f"task {name!r} cannot be imported ({e}); {OWN}") from e
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"{name!r} is not a class derived from transformer2.tasks.Task; docs/tasks.md shows one")
    missing = [*sorted(cls.__abstractmethods__), *(a for a in ("name", "description") if not hasattr(cls, a))]
    if missing:
        raise ConfigError(f"task {name!r} lacks {', '.join(missing)}; docs/tasks.md shows a whole one")
    return cls
