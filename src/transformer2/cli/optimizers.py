"""`model.optimizer` and `model.lr_scheduler`: a class and its arguments, however they are written.

AdamW    {lr: 2e-3}    {class_path: torch.optim.AdamW, init_args: {lr: 2e-3}}    --optimizer AdamW --optimizer.lr 2e-3
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformer2.arguments import is_natural, written
from transformer2.cli.schema import arguments, classes
from transformer2.errors import ConfigError, nearest

MODEL = "transformer2.module.training.SVFReinforceModule"
# Where a name without a module is looked up.
HOMES = {
    "optimizer": ("transformer2.module.natural", "torch.optim"),
    "lr_scheduler": ("transformer2.module.optimizers", "torch.optim.lr_scheduler"),
}


def class_and_arguments(key: str, value: Any) -> dict[str, Any]:
    """What a config says of one of them, as `class_path` (unless it is left open) and `init_args`.

    Raises:
        ConfigError: It is neither a class nor arguments, or there is no class of that name.
    """
    given: Any = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("init_args") or {}, Mapping):
        raise ConfigError(f"model.{key} must be a class or keys and values, not {written(value)}")
    path = given.get("class_path")
    inner = {k: v for k, v in given.items() if k not in ("class_path", "init_args")}
    found = {"init_args": {**(given.get("init_args") or {}), **inner}}
    return found if path is None else {"class_path": _full(key, path), **found}


def on_top(key: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One over the other. Another class keeps those arguments that it takes, too, and that mean the same."""
    kept = dict(below.get("init_args") or {})
    path = above.get("class_path", below.get("class_path"))
    if path is not None and path != below.get("class_path", default_class(key)):
        try:
            # The lr of NaturalGradient is a share of a step, not a length.
            other_scale = ("lr",) if is_natural(path) or is_natural(below.get("class_path")) else ()
            kept = {k: value for k, value in kept.items() if k in arguments(path) and k not in other_scale}
        except LookupError:  # a third party's
            kept = {}
    return {**({} if path is None else {"class_path": path}), "init_args": {**kept, **above["init_args"]}}


def default_class(key: str) -> str:
    """The class that the module builds by itself."""
    found = re.search(r"^(?:lambda \w+: )?(\w+)", arguments(MODEL)[key].default or "")
    assert found is not None
    return _full(key, found[1])


def _full(key: str, name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"model.{key} must name a class, not {written(name)}")
    if "." in name or "${" in name:
        return name
    known = {name: home for home in reversed(HOMES[key]) for name in classes(home)}
    if name not in known:
        raise ConfigError(f"model.{key}: there is no class {written(name)}{nearest(name, known)}")
    return f"{known[name]}.{name}"
