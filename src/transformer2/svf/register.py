"""PEFT learns SVF: the enum member, the registration, and a hook that does both when `peft` is imported.

PEFT's registry takes only names of its `PeftType` enum, so an out-of-tree method has to extend that enum. And every way
to load an adapter (PeftModel's, transformers') reads adapter_config.json through one method of PEFT's, whose wrapper
here verifies an SVF expert first; `load_adapter` over a name that is taken would not, and has its own. All that depends
on this lives here, under tests that fail loudly when PEFT changes.
Nothing here imports torch or peft at import time: `import transformer2` stays cheap.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from transformer2.svf.format import SAVED

__all__ = ["extend_peft_types", "register", "register_after", "register_when_peft_loads", "verify_experts"]

# These import peft themselves, and register at their end.
_OWN_MODULES = tuple(f"transformer2.svf.{name}" for name in ("config", "layer", "rows", "targets", "bases", "model"))


def extend_peft_types() -> None:
    """Add the member SVF to PEFT's `PeftType`. Does nothing when it is there."""
    from peft.utils.peft_types import PeftType

    if "SVF" in PeftType.__members__:
        return
    member = str.__new__(PeftType, "SVF")
    member._name_ = member._value_ = "SVF"
    # The attribute first: an enum refuses to set one that is a member already.
    type.__setattr__(PeftType, "SVF", member)
    PeftType._member_names_.append("SVF")
    PeftType._member_map_["SVF"] = member
    PeftType._value2member_map_["SVF"] = member


def verify_experts() -> None:
    """Let PEFT load SVF experts only once their checksums were verified. Does nothing the second time."""
    from peft import PeftModel
    from peft.config import PeftConfigMixin

    plain, load = PeftConfigMixin.from_json_file.__func__, PeftModel.load_adapter
    if plain.__module__ == __name__:
        return

    @wraps(plain, assigned=("__doc__",))
    def from_json_file(cls: type, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        from transformer2.svf.adapter_folder import config_for_peft

        verified = config_for_peft(path_json_file)
        return plain(cls, path_json_file, **kwargs) if verified is None else verified

    @wraps(load)
    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        taken, saved = self.peft_config.get(adapter_name), None
        if getattr(taken, "peft_type", None) == "SVF":
            saved = type(taken).from_pretrained(model_id, **self._split_kwargs(dict(kwargs))[0])
        loaded = load(self, model_id, adapter_name, *args, **kwargs)
        if saved is not None:  # what was said is of weights that are gone
            vars(taken).update({name: getattr(saved, name) for name in SAVED - {"inference_mode"}})
            taken._svf_loaded, taken._svf_stamped = (taken._svf_loaded[0], taken.step, taken.score), False
        return loaded

    PeftConfigMixin.from_json_file = classmethod(from_json_file)
    PeftModel.load_adapter = load_adapter


def register() -> None:
    """Make PEFT know SVF now (this imports peft). Does nothing when it does already."""
    extend_peft_types()
    verify_experts()
    importlib.import_module(_OWN_MODULES[-1])


def register_after(name: str) -> None:
    """Register at the end of a module of ours that imports peft; of nested ones, at the end of the outermost."""
    others = (sys.modules[own] for own in _OWN_MODULES if own in sys.modules and own != name)
    if not any(getattr(other.__spec__, "_initializing", False) for other in others):
        register()


def register_when_peft_loads() -> None:
    """Register at once when peft is imported already, else right after it is."""
    if "peft" in sys.modules:
        register()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


class _AfterPeft:
    """A finder that finds nothing of its own: it lets the others find peft and acts once peft has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "peft":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # a question where peft is does not mean that it is imported
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_and_register(module: ModuleType) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            exec_module(module)
            # A module of ours that imports peft is half-way through, and registers at its own end.
            if not any(own in sys.modules for own in _OWN_MODULES):
                register()

        spec.loader.exec_module = exec_and_register  # type: ignore[method-assign]
        return spec
