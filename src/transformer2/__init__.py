"""transformer2: self-adaptive language models. SVF as a PEFT tuner, trained by REINFORCE on verifiable rewards.

Importing this package imports neither torch nor peft; PEFT learns SVF when it is imported, before or after.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformer2.svf.register import register_when_peft_loads

if TYPE_CHECKING:
    from transformer2.adaptive.model import SelfAdaptive
    from transformer2.experts import compare_experts, import_reference_checkpoint, load_experts, mix_experts
    from transformer2.svf.config import SVFConfig
    from transformer2.svf.modes import set_form
    from transformer2.svf.rows import z_rows

__version__ = "0.1.0"

_LAZY = {
    "SelfAdaptive": "transformer2.adaptive.model",
    "SVFConfig": "transformer2.svf.config",
    "set_form": "transformer2.svf.modes",
    "z_rows": "transformer2.svf.rows",
    "compare_experts": "transformer2.experts",
    "import_reference_checkpoint": "transformer2.experts",
    "load_experts": "transformer2.experts",
    "mix_experts": "transformer2.experts",
}

# `import transformer2` is enough for `transformer2.tasks.get(...)`: these are imported when first named.
_SUBMODULES = {"adaptation", "callbacks", "errors", "experts", "rollout", "svf", "tasks", "tiny", "types"}

__all__ = [
    "SVFConfig",
    "SelfAdaptive",
    "compare_experts",
    "import_reference_checkpoint",
    "load_experts",
    "mix_experts",
    "set_form",
    "z_rows",
]

register_when_peft_loads()


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"transformer2.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'transformer2' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_SUBMODULES])
