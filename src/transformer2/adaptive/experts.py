"""The experts of a model that answers: loaded as adapters, mixed into one z per request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from transformer2.adaptation.members import add_member
from transformer2.adaptive.request import BASE, Selection
from transformer2.arguments import expected, fits, written
from transformer2.errors import ConfigError, ExpertError, UnknownExpertError, UserError, nearest, shown
from transformer2.experts import Expert, read_expert
from transformer2.experts.folder import check_name
from transformer2.policy import build_policy, load_base
from transformer2.svf.base_folder import check_keys, instead
from transformer2.svf.config import SVFConfig
from transformer2.svf.fingerprint import warn_of_another_base
from transformer2.svf.layer import tuned_layers
from transformer2.svf.mixing import mix_deltas, mixing_weights
from transformer2.svf.targets import find_targets

__all__ = ["LoadedExperts", "load_policy", "read_experts"]

MAX_MIXTURES = 64  # whose z is kept
RESERVED = (BASE, "auto", "mix")  # names that mean something else


class LoadedExperts:
    """Experts by name, and the z of any mixture of them.

    Args:
        policy: The base with SVF layers.

    Attributes:
        experts: Name -> expert, in the order in which weights are given.
        base: Adapter of the base, z = 1.
    """

    def __init__(self, policy: PeftModel) -> None:
        self.policy = policy
        self.experts: dict[str, Expert] = {}
        self.base = add_member(policy, dict.fromkeys(tuned_layers(policy)))
        self._adapters: dict[str, str] = {}
        self._mixed: dict[tuple[float, ...], dict[nn.Module, Tensor]] = {}

    @property
    def adapters(self) -> list[str]:
        """Adapter names of the experts, and of the base last: the axis K + 1 of weights."""
        return [*self._adapters.values(), self.base]

    def add(self, name: str, expert: Expert) -> None:
        """Load an expert.

        Raises:
            ExpertError: Its name is taken or cannot be asked for, or it does not fit the base.
        """
        if check_name(name) in self.experts or name in RESERVED:
            raise ExpertError(f"the name {name!r} is taken; give the expert another one")
        warn_of_another_base({name: (expert.base_fingerprint, expert.base_quantisation)}, self.policy)
        self._adapters[name] = add_member(self.policy, expert.deltas)
        self.experts[name] = replace(expert, name=name)  # its category, too
        self._mixed.clear()

    def remove(self, name: str) -> None:
        """Unload an expert."""
        self.policy.delete_adapter(self._adapters.pop(name))
        del self.experts[name]
        self._mixed.clear()

    def expert(self, name: str) -> Expert:
        """One of them; the base is none.

        Raises:
            UnknownExpertError: With the nearest name.
        """
        self.check(name)
        if name not in self.experts:
            raise UnknownExpertError(f"{name!r} is not an expert. Known: {', '.join(self.experts)}")
        return self.experts[name]

    def check(self, use: Any) -> None:
        """Refuse a name, or weights, of experts that are not loaded.

        Raises:
            UnknownExpertError: With the nearest name.
            UserError: Weights that cannot be mixed, or neither a name nor weights.
        """
        if not isinstance(use, str | Mapping | None):
            raise UserError(f"what answers is a name, or a mapping of experts to weights, not {shown(repr(use), 60)}")
        for name in use if isinstance(use, Mapping) else [use]:
            if name not in (None, BASE) and name not in self.experts:
                known = [BASE, *self.experts]
                near = nearest(str(name), known)
                raise UnknownExpertError(f"there is no expert {name!r}{near} Known: {', '.join(known)}")
        if isinstance(use, Mapping):
            try:
                mixing_weights(list(use.values()), len(use), "delta")
            except (TypeError, ValueError) as e:
                given = shown(repr(use), 60)
                raise UserError(f"the weights of a mixture are numbers from -100 to 100, not {given}") from e

    def selection(self, use: str | Mapping[str, float]) -> Selection:
        """What answers, from a name or weights."""
        self.check(use)
        if isinstance(use, Mapping):
            weights = {name: float(weight) for name, weight in use.items()}
            if math.isclose(sum(weights.values()), 1):  # what is the base's says nothing new
                weights.pop(BASE, None)
            return Selection("mix" if weights else BASE, weights)
        return Selection(use, {} if use == BASE else {use: 1.0})

    def row(self, weights: Mapping[str, float]) -> Tensor:
        """Weights (K + 1,) over the experts and the base; see `Selection`."""
        row = torch.tensor([*(float(weights.get(name, 0.0)) for name in self.experts), 0.0])
        row[-1] = weights.get(BASE, 1 - row.sum())
        return row

    def deltas(self, weights: Tensor) -> dict[nn.Module, Tensor]:
        """z - 1 of every SVF layer under weights (K + 1,), or (L, K + 1) by matrix."""
        key = tuple(weights.flatten().tolist())
        if key not in self._mixed:
            while len(self._mixed) >= MAX_MIXTURES:
                del self._mixed[next(iter(self._mixed))]
            layers = list(tuned_layers(self.policy).values())
            self._mixed[key] = {
                layer: mix_deltas(weights_K, [layer.detached_delta([name]) for name in self.adapters], "raw")
                for layer, weights_K in zip(layers, weights.expand(len(layers), -1), strict=True)
            }
        return self._mixed[key]


def read_experts(experts: Mapping[str, str | Path] | Iterable[str | Path] | str | Path) -> dict[str, Expert]:
    """Experts by the names given to them, else by their folders'; one path is one expert.

    Raises:
        ExpertError: See `read_expert`; or two of them have one name, or there are no folders.
    """
    many: Any = [experts] if isinstance(experts, str | Path) else experts
    try:
        named = [*many.items()] if isinstance(many, Mapping) else [(None, path) for path in many]
    except TypeError as e:
        what = "a mapping of names to folders, or a list of folders"
        raise ExpertError(f"experts are {what}, not {shown(repr(experts), 60)}") from e
    found: dict[str, Expert] = {}
    for name, path in named:
        expert = read_expert(path, name)
        if expert.name in found:
            raise ExpertError(f"two experts have one name, {expert.name!r}; give them others, NAME={path}")
        found[expert.name] = expert
    return found


def load_policy(
    base: str, experts: Sequence[Expert], dtype: str, device: str | torch.device | None, model_kwargs: Mapping[str, Any]
) -> PeftModel:
    """The base with an SVF layer on every matrix that one of the experts tunes, on the GPU where there is one.

    Raises:
        ConfigError: A base, device or model_kwargs that is none; see `load_base`.
    """
    for name, hint, value in (("base", str, base), ("model_kwargs", dict, model_kwargs)):
        if not fits(hint, value):
            raise ConfigError(f"{name} must be {expected(hint)}, not {written(value)}")
    try:
        device = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise ConfigError(f"device must be cpu, cuda, cuda:N or mps, not {written(device)}") from e
    here = torch.accelerator.current_accelerator(check_available=True)
    if device is not None and device.type != "cpu":
        count = torch.accelerator.device_count() if here is not None and here.type == device.type else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"device {device} is not on this machine; give another one, or leave it out")
    check_keys(model_kwargs, "model_kwargs ", instead())
    model = load_base(base, dtype, **model_kwargs)
    tuned = {module for expert in experts for module in expert.deltas}
    if not tuned:  # nothing to choose from: PEFT wants a matrix all the same
        tuned = {find_targets(model, SVFConfig(target_modules="attention"))[0]}
    policy = build_policy(model, {"target_modules": sorted(tuned)})
    if hasattr(model, "hf_device_map"):
        return policy
    return policy.to(device or here or "cpu")
