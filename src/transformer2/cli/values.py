"""What the types of a config's keys leave open: the insides of mappings, and values that do not go together."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_origin

from transformer2.arguments import check_natural, check_objective, check_samples, expected, fits, is_natural, written
from transformer2.cli.schema import arguments, members
from transformer2.errors import ConfigError, DataError, nearest
from transformer2.svf.base_folder import LOADING, NAMES, check_keys, instead, looks_like_a_path
from transformer2.svf.format import SAVED, peft_type
from transformer2.svf.gguf_base import gguf_file, names_gguf

INSTEAD = instead("model.") | {
    "load_in_4bit": "use --config conf/quantisation/nf4.yaml",
    "load_in_8bit": "use --config conf/quantisation/int8.yaml",
}
SVF_CONFIG = "transformer2.svf.config.SVFConfig"
OF_PEFT = ("task_type", "revision", "auto_mapping", "base_model_name_or_path", "peft_version")


def check_model_kwargs(
    given: Mapping[str, Any], prefix: str = "model.model_kwargs.", remedies: Mapping[str, str] = INSTEAD
) -> None:
    """Refuse what `from_pretrained` would fail on, or drop; `remedies` say where some keys are set."""
    check_keys(given, prefix, remedies)
    for key, value in given.items():
        full = f"{prefix}{key}"
        if key not in LOADING and (near := nearest(key, LOADING, 0.8)):
            raise ConfigError(f"unknown config key {full}{near}")
        if not fits(LOADING.get(key, Any), value):
            raise ConfigError(f"{full} must be {expected(LOADING[key])}, not {written(value)}")


def check_adapter(given: dict[str, Any]) -> None:
    """An unknown method, and whatever an SVF adapter cannot be; PEFT checks its own methods' keys when it is there."""
    kind, methods = peft_type(given), ["SVF", *members("peft.utils.peft_types", "PeftType")]
    if kind not in methods:
        raise ConfigError(f"unknown adapter.peft_type {written(kind)}{nearest(kind, methods)}")
    for key, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"model.adapter.{key} must be a finite number, not {written(value)}")
    if kind != "SVF":
        return
    if given.get("inference_mode") is False:  # what PEFT's examples say, and what holds in training
        del given["inference_mode"]
    if saved := sorted(SAVED & given.keys()):
        raise ConfigError(f"model.adapter.{saved[0]} is written when an expert is saved; leave it out")
    if given.get("basis_cache") is False:  # YAML's word for `off`
        given["basis_cache"] = "off"
    known = {key: a for key, a in arguments(SVF_CONFIG).items() if get_origin(a.hint) is not ClassVar}
    for key, value in given.items():
        if key in ("peft_type", *OF_PEFT):
            continue
        if key == "init_std" or (key, value) in (("form", "auto"), ("form", "merged")):
            raise ConfigError(f"model.adapter.{key}: {written(value)} is gone; leave it out (docs/svf.md)")
        if key not in known:
            raise ConfigError(f"unknown key model.adapter.{key} for SVF{nearest(key, known.keys() - SAVED)}")
        empty = key == "target_modules" and value is not None and not value
        if empty or not (fits(known[key].hint, value) or (key == "target_modules" and value is None)):
            raise ConfigError(f"model.adapter.{key} must be {expected(known[key].hint)}, not {written(value)}")


def check_trainer(trainer: dict[str, Any]) -> None:
    """Durations, and devices given twice; epochs alone are not cut off by the default number of steps."""
    if trainer.get("max_epochs") not in (None, -1):
        trainer.setdefault("max_steps", -1)
    for key in ("max_time", "val_check_interval"):
        value = trainer.get(key)
        if value is None or (key == "val_check_interval" and not isinstance(value, dict | str)):
            continue
        if isinstance(value, dict):
            known = {"weeks", "days", "hours", "minutes", "seconds"}
            amounts = list(value.values())
            usable = set(value) <= known and any(amounts) and all(fits(float, n) and n >= 0 for n in amounts)
        else:
            usable = bool(re.fullmatch(r"\d+:\d\d?:\d\d?:\d\d?", str(value)))
        if not usable:
            raise ConfigError(f"trainer.{key} as a time must be DD:HH:MM:SS or {{hours: N}}, not {written(value)}")
    devices = trainer.get("devices")
    if isinstance(devices, list) and len(set(devices)) < len(devices):
        raise ConfigError(f"trainer.devices names a device twice ({written(devices)}); name each once")


def check_together(config: Mapping[str, Any], trainer: Mapping[str, Any], trains: bool) -> None:
    """Keys that contradict each other; and what a run that trains cannot do without."""
    model, adapt = config["model"], config.get("adapt") or {}
    test = model.get("test") or {}
    check_samples(test.get("samples", 0), test.get("temperature"))
    objective = model.get("objective", "reinforce")
    check_objective(objective, model.get("sampling") or {}, model.get("loss") or {})
    recomputes = bool((model.get("memory") or {}).get("activation_checkpointing"))
    optimizer = model.get("optimizer") or {}
    rate, kind = (optimizer.get("init_args") or {}).get("lr"), optimizer.get("class_path", "")
    if trains and kind and rate is None and not kind.startswith(("torch.", "transformer2.")):
        raise ConfigError(f"model.optimizer {kind} needs an lr, which is no other class's; give --optimizer.lr")
    if is_natural(kind):
        check_natural(kind, rate, model.get("adapter") or {}, recomputes, objective, model.get("max_grad_norm"))
    warm = (model.get("lr_scheduler") or {}).get("init_args", {}).get("warmup_steps", 0)
    if isinstance(warm, int) and 0 < trainer["max_steps"] <= warm:  # a scheduler of the user's own may take others
        raise ConfigError(
            f"model.lr_scheduler.warmup_steps {warm} leaves no step of trainer.max_steps {trainer['max_steps']} at the "
            "full learning rate; give fewer"
        )
    if adapt.get("experts") == []:
        raise ConfigError("adapt.experts is empty; name at least one expert folder")


def check_base(base: str, on_disk: bool, planned: bool = False) -> None:
    """Refuse at once what is none of `NAMES`, a folder, a GGUF file nor a Hub id.

    Args:
        base: `model.base`.
        on_disk: Whether what it names must be there.
        planned: Whether for a plan, which knows the shapes of some folders that are elsewhere.
    """
    too_long = len(base) > 255
    if not too_long and names_gguf(base):
        if on_disk:
            gguf_file(base)
        return
    if not too_long and os.path.isdir(base):
        return
    if too_long or looks_like_a_path(base):
        if too_long or (on_disk and not planned):
            raise DataError(
                f"base {written(base)} is not a directory; give model.base `tiny`, a folder, a GGUF file, or a Hub id"
            )
    elif base not in NAMES and (near := nearest(base.lower().rstrip("/"), NAMES, 0.7)):
        raise DataError(f"base {written(base)} is neither a folder nor a Hub id{near}")
    elif not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", base, re.ASCII):
        raise DataError(
            f"base {written(base)} is neither a folder nor a Hub id; give `tiny`, a folder, a GGUF file, or OWNER/NAME"
        )


def run_name(name: Any) -> str:
    """The name of a run, if a folder can have it and lies in runs/ then.

    Raises:
        ConfigError: It is none.
    """
    name = str(name) if isinstance(name, int | float) and not isinstance(name, bool) else name
    usable = isinstance(name, str) and name.strip() not in ("", ".", "..") and name.isprintable()
    if not usable or set("/\\") & set(name) or name.startswith(("~", "-")) or len(os.fsencode(name)) > 200:
        raise ConfigError(
            f"name must be a folder's name of at most 200 bytes without / or \\ or a - in front, not {written(name)}"
        )
    return str(name)


def number(options: Mapping[str, str], name: str, default: Any, low: float, high: float = math.inf) -> Any:
    """A flag's number, of the type of `low`; the default where it is not given.

    Raises:
        ConfigError: No such number, or one out of range.
    """
    if name not in options:
        return default
    kind = type(low)
    try:
        value = kind(options[name])
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        between = f"from {low} to {high}" if high != math.inf else f"of at least {low}"
        raise ConfigError(
            f"--{name} must be a {'whole ' * (kind is int)}number {between}, not {written(options[name])}"
        )
    return value


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse a choice that there is not.

    Raises:
        ConfigError: With the nearest one.
    """
    if value not in known:
        raise ConfigError(f"unknown {name} {written(value)}{nearest(str(value), known)} Known: {', '.join(known)}")
