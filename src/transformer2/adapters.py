"""What is trained on top of the base: a PEFT config from a mapping or from an expert's folder, and an expert's weights.

An expert is built from its own adapter_config.json, whatever the method: rank, alpha, targets and initialisation of
another adapter would silently give other answers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from transformer2.errors import ConfigError, ExpertError, UserError, nearest, one_line, shown
from transformer2.svf.adapter_folder import read_adapter, read_config
from transformer2.svf.config import SVFConfig
from transformer2.svf.fingerprint import warn_of_another_base
from transformer2.svf.format import CONFIG, OLD_FIELDS, peft_type
from transformer2.svf.targets import find_targets, language_model, tower_refused
from transformer2.vision import pictures_of

__all__ = ["adapter_config", "check_towers_frozen", "expert_adapter", "load_expert"]

_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_HOW = ("form", "parametrization", "basis_cache")  # of SVF: how it trains, not what it is
_SECONDS_TO_MATCH = 10
_MATCH_ALL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        for whole in (pattern, rf"(.*\\.)?({pattern})$", rf".*\\.{pattern}\\.(\\d+)\\."):
            re.match(whole, name)
"""


def adapter_config(adapter: Mapping[str, Any] | PeftConfig) -> PeftConfig:
    """A PEFT config from a mapping that reads like an adapter_config.json (`peft_type: SVF`, `target_modules: mlp`).

    Raises:
        ConfigError: An unknown peft_type, key or value, with the nearest valid name.
    """
    if isinstance(adapter, PeftConfig):
        return adapter
    kind, methods = peft_type(adapter), _methods()
    options = {key: value for key, value in adapter.items() if key != "peft_type"}
    if kind not in methods:
        raise ConfigError(f"unknown adapter.peft_type {kind!r}{nearest(kind, methods)}")
    known = _fields(methods[kind])
    for key, value in options.items():
        if key not in known:
            near = "; did you mean 'r'?" if key == "rank" and "r" in known else nearest(key, known)
            raise ConfigError(f"unknown key adapter.{key} for {kind}{near}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"adapter.{key} must be a finite number, not {value}")
    return _built(kind, lambda: methods[kind](**options))


def expert_adapter(folder: str | Path, given: Mapping[str, Any], base: nn.Module) -> PeftConfig:
    """The config that an expert was trained with, to be trained further or scored.

    Args:
        folder: The expert folder, of any of PEFT's methods.
        given: `model.adapter` as the user has it; may say less than the expert's config, but nothing else. What says
            how SVF trains (`form`, `parametrization`, `basis_cache`) is taken from here.
        base: The base model, without adapters.

    Raises:
        ConfigError: A given value contradicts the expert's; the message has both.
        ExpertError: A folder or config that cannot be read.
    """
    folder = Path(folder).expanduser()
    saved = read_config(folder)
    kind = saved["peft_type"]
    if (cls := _methods().get(kind)) is None:
        raise ExpertError(f"{folder}: this PEFT knows no peft_type {shown(kind, 40)!r}{nearest(kind, _methods())}")
    fields = _fields(cls)
    if unknown := sorted(saved.keys() - fields - OLD_FIELDS - {"runtime_config"}):
        raise ExpertError(
            f"{folder}: {CONFIG} has field {shown(unknown[0], 60)!r}, which this PEFT does not know and would leave "
            "out; the file is damaged, or upgrade peft"
        )
    if cls is not SVFConfig:  # an SVF expert's weights say which modules it tunes
        _check_patterns(folder, saved, (name for name, _ in base.named_modules()))
    try:
        own = PeftConfig.from_pretrained(str(folder))
    except UserError as e:
        raise ExpertError(f"{folder}: {e}") from e
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise ExpertError(f"{folder}: {CONFIG}: {one_line(e)}") from e
    own.inference_mode, own.base_model_name_or_path = False, None
    words = {key: value for key, value in given.items() if key != "peft_type"}
    differing = {"peft_type": (peft_type({"peft_type": kind, **given}), kind)}
    if differing["peft_type"][0] == kind:
        if unknown := sorted(words.keys() - fields):
            raise ConfigError(f"unknown key model.adapter.{unknown[0]} for {kind}{nearest(unknown[0], fields)}")
        asked = _built(kind, lambda: dataclasses.replace(own, **words))
        differing = {key: (_plain(getattr(asked, key)), _plain(getattr(own, key))) for key in words}
    for key, (mine, theirs) in differing.items():
        if isinstance(own, SVFConfig) and key in _HOW:
            setattr(own, key, mine)
        elif mine != theirs and not (key in _TARGETS and _targets(base, own) == _targets(base, asked)):
            raise ConfigError(
                f"model.adapter.{key} is {shown(mine, 120)}, but {folder} was trained with {shown(theirs, 120)}; leave "
                "the key out (--model.adapter null, where a config has it), or give another expert"
            )
    if isinstance(own, SVFConfig):
        own.base_fingerprint = own.base_quantisation = None  # compared by load_expert, stamped again when it is saved
        own.shuffled = own.step = own.score = None  # what is trained on is no control, and will have its own
    return own


def check_towers_frozen(policy: PeftModel) -> None:
    """Refuse an adapter that trains anything but the language model: what a tower makes of a picture is kept.

    Raises:
        ConfigError: It does; names the layer and the remedy.
    """
    base, kind = policy.get_base_model(), policy.peft_config["default"].peft_type.value
    if pictures_of(base) is not None and not isinstance(
        base.get_input_embeddings(), nn.Embedding | ModulesToSaveWrapper
    ):
        raise ConfigError(
            f"this {kind} adapter wraps the input embedding, where pictures enter; leave embed_tokens out of "
            "target_modules, and trainable_token_indices"
        )
    inside = language_model(base)
    head = {id(p) for p in base.get_output_embeddings().parameters()} if inside else set()
    for name, parameter in base.named_parameters():
        if parameter.requires_grad and not name.startswith(inside) and id(parameter) not in head:
            raise tower_refused(base, name.partition(".default")[0], f"this {kind} adapter")


def load_expert(policy: PeftModel, folder: str | Path) -> None:
    """Put an expert's weights into the adapter `default`.

    Raises:
        ExpertError: The folder is damaged or does not fit the model: its tensors must be exactly the adapter's.
    """
    folder = Path(folder).expanduser()
    saved, state = read_adapter(folder)
    config = policy.peft_config["default"]
    if saved["peft_type"] != config.peft_type.value:
        raise ExpertError(f"{folder} is a {saved['peft_type']} adapter, the model has a {config.peft_type.value} one")
    if isinstance(config, SVFConfig):  # the tuner checks names and shapes
        warn_of_another_base({"the expert": (saved["base_fingerprint"], saved["base_quantisation"])}, policy)
    else:
        needed = {k: tuple(v.shape) for k, v in get_peft_model_state_dict(policy, save_embedding_layers=False).items()}
        given = {k: tuple(v.shape) for k, v in state.items()}
        if wrong := sorted(key for key in {*needed, *given} if needed.get(key) != given.get(key)):
            raise ExpertError(
                f"{folder}: {len(wrong)} tensors do not fit this model and adapter (first: {shown(wrong[0], 120)}, "
                f"{given.get(wrong[0], 'none')} in the file, {needed.get(wrong[0], 'none')} needed); is it an expert "
                "for another base model?"
            )
        base = saved.get("base_model_name_or_path")
        if base is not None and base != config.base_model_name_or_path:
            warnings.warn(
                f"the expert was trained on {shown(base)}, this base is {config.base_model_name_or_path}; its folder "
                "does not say whether they are the same model",
                stacklevel=2,
            )
    try:
        set_peft_model_state_dict(policy, state)
    except (KeyError, RuntimeError) as e:
        raise ExpertError(f"{folder} does not fit this model: {one_line(e)}") from e


def _built(kind: str, build: Callable[[], PeftConfig]) -> PeftConfig:
    try:
        return build()
    except UserError:
        raise
    except (TypeError, ValueError) as e:
        raise ConfigError(f"model.adapter cannot be a {kind} config: {one_line(e)}") from e


def _methods() -> dict[str, type[PeftConfig]]:
    return {str(getattr(kind, "value", kind)): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _fields(cls: type[PeftConfig]) -> set[str]:
    return {f.name for f in dataclasses.fields(cls) if f.init}


def _plain(value: Any) -> Any:
    """Values that mean the same compare as equal: sets and tuples as lists, enums as their values."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    value = list(value) if isinstance(value, tuple) else value
    return getattr(value, "value", value)


def _targets(base: nn.Module, config: PeftConfig) -> list[str]:
    """The modules a config picks: `all-linear` and a list of names can mean the same."""
    if isinstance(config, SVFConfig):
        return find_targets(base, config)
    config = _maybe_include_all_linear_layers(deepcopy(config), base)
    return [name for name, _ in base.named_modules() if name and check_target_module_exists(config, name)]


def _check_patterns(folder: Path, saved: Mapping[str, Any], names: Iterable[str]) -> None:
    """Try untrusted regular expressions in a process that can be stopped: some take years, and hold the GIL."""
    words = [saved.get(key) for key in ("target_modules", "exclude_modules", "layers_pattern")]
    words += [*(saved.get("rank_pattern") or ()), *(saved.get("alpha_pattern") or ())]
    patterns = [word for word in words if isinstance(word, str) and re.search(r"[*+{]", word)]
    if not patterns:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH_ALL],
            input=json.dumps([patterns, list(names)]).encode(),
            capture_output=True,
            timeout=_SECONDS_TO_MATCH,
        )
    except subprocess.TimeoutExpired:
        raise ExpertError(
            f"{folder}: a regular expression of {CONFIG} ({shown(patterns[0], 60)!r}) takes more than "
            f"{_SECONDS_TO_MATCH} s to match this model's modules; name the modules instead"
        ) from None
