"""Every key and value of a composed config, checked in half a second of CPU: before the heavy imports, before a folder.

The constructors check types and ranges again, for those who come from Python.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from transformer2 import tasks
from transformer2.arguments import OPTIMIZER_RANGES, Seed, expected, fits, written
from transformer2.cli.keys import ELSEWHERE, LIGHTNING, TRAINER_DEFAULTS, sections, suggestion
from transformer2.cli.optimizers import HOMES, class_and_arguments, default_class
from transformer2.cli.schema import Argument, arguments, value_of
from transformer2.cli.values import (
    check_adapter,
    check_base,
    check_model_kwargs,
    check_together,
    check_trainer,
    run_name,
)
from transformer2.errors import ConfigError, DataError, UserError, nearest
from transformer2.files import check_directory
from transformer2.svf.base_folder import EMBEDDED

CLASSES = {f"trainer.{key}" for key in ("callbacks", "logger", "plugins", "profiler", "strategy")}
# The rows that a command cannot do without (validation, in fit, it can); others read none.
RUNS = {"fit": ("train", "test"), "validate": ("val",), "test": ("test",), "adapt": ("test",)}
DISPATCH = "prompt and cls read what is written; what was constrained is --strategy scores (adapt.classifier: whose z)"
REMEDIES = {
    "seed_everything": "several seeds are several runs",
    "trainer.strategy": "add one of --config conf/strategy/{ddp,zero2,zero3,zero3_offload}.yaml",
}


def check(config: dict[str, Any], command: str, folders: bool = True) -> None:
    """Check a composed config; text turns into a number where one is due (`${oc.env:LR}`).

    Args:
        config: Keys `seed_everything`, `model`, `data`, `trainer`, and `adapt` where that is asked for.
        command: `fit`, `validate`, `test`, `adapt`, `plan`, `decompose`, `spectrum` or `export`.
        folders: Whether the folders it names must be there; a config that is only printed needs none.

    Raises:
        ConfigError: The first key that is not known, with the nearest one; the first value that cannot be.
    """
    if config.get("name") is not None:
        run_name(config["name"])
    if isinstance(trainer := config.get("trainer"), dict):
        if "," in str(devices := trainer.get("devices")) and isinstance(devices, str):  # `0,1`, Lightning's own way
            trainer["devices"] = [_read(part) for part in devices.split(",") if part.strip()]
        if isinstance(trainer.get("callbacks"), dict):  # one is a list of one
            trainer["callbacks"] = [trainer["callbacks"]]
    few_shot = isinstance(config.get("data"), dict) and "few_shot" in config["data"]
    if few_shot and command == "validate":
        raise ConfigError("data.few_shot leaves no rows to validate with; leave it out, or use test")
    known = sections(command == "adapt", few_shot=few_shot)
    seed = {"seed_everything": Argument(Seed, None, "")}
    _check("", own := {key: config[key] for key in seed if key in config}, seed, known)
    config.update(own)
    for section, keys in known.items():
        if config.get(section) is None:
            config[section] = {}
        _check(section, config[section], keys, known)
    if config["model"].get("rollout") == "vllm" and config["model"].get("objective") != "next_token":
        # Its kernels round otherwise than the policy's (docs/rollouts.md).
        config["model"].setdefault("loss", {}).setdefault("importance_cap", 2.0)
    check_model_kwargs(config["model"].get("model_kwargs") or {})
    check_adapter(config["model"].get("adapter") or {})
    check_trainer(config["trainer"])
    data = config["data"]
    if (command == "adapt" or (few_shot and command == "fit")) and data.get("task") is None:
        if config["model"].get("base", "tiny") not in EMBEDDED:
            raise ConfigError("name the task: data.task (only the embedded models have one of their own)")
        data["task"] = value_of("transformer2.data.unseen.TASK")
    try:
        task = tasks.get(data.get("task", "tiny_math"), **(data.get("task_options") or {}))
        if folders and command in RUNS:
            task.check_rows()
        if config["model"].get("objective") == "next_token" and command in ("fit", "plan"):
            task.check_solutions()
    except UserError:
        raise
    except Exception as e:  # whatever a user's task may raise
        raise ConfigError(f"data.task {data.get('task')} cannot be made ({type(e).__name__}: {e})") from e
    trainer = {**TRAINER_DEFAULTS, **config["trainer"]}
    if trainer["max_steps"] == trainer["max_epochs"] == -1 and not trainer.get("max_time"):
        raise ConfigError("trainer.max_steps, max_epochs and max_time set no end; give one of them")
    check_together(config, trainer, trains=command == "fit")
    for split in RUNS.get(command, ()):
        if trainer.get(f"limit_{split}_batches") == 0:
            raise ConfigError(f"trainer.limit_{split}_batches is 0, so {command} has nothing to do; leave it out")
    if folders and command in RUNS and (folder := data.get("data_dir")):
        check_directory(folder, "data.data_dir", "name the folder that holds the rows", DataError)
    for folder in (folders and (config.get("adapt") or {}).get("experts")) or []:
        check_directory(folder, "adapt.experts", "train that expert with fit, or name its folder", ConfigError)
    check_base(config["model"].get("base", "tiny"), on_disk=folders, planned=command == "plan")


def _check(path: str, given: Any, known: Mapping[str, Argument], everything: Mapping[str, Mapping[str, Any]]) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"{path} must hold keys and values, not {written(given)}")
    for key, value in given.items():
        full = f"{path}.{key}".lstrip(".")
        if key == "first_pass":  # of versions before `scores`, in `adapt` and in evaluators
            raise ConfigError(f"{full} is gone: {DISPATCH}")
        if key not in known:
            raise ConfigError(f"unknown config key {full}{suggestion(full, everything)}")
        hint, default = known[key].hint, known[key].default
        if full in ELSEWHERE and str(value) != default and not (key in LIGHTNING and fits(hint, value)):
            raise ConfigError(f"{full} is not set by itself; set {ELSEWHERE[full]}")
        if isinstance(hint, dict):  # a dataclass
            _check(full, value, hint, everything)
            continue
        if path == "model" and key in HOMES:
            given[key] = class_and_arguments(key, value)
            _check_built(key, given[key], everything)
            continue
        if isinstance(value, str) and value.strip() and not fits(hint, value):
            value = given[key] = _read(value)
        if not fits(hint, value):
            choices = map(str, getattr(hint, "__args__", ()) if isinstance(value, str) else ())
            remedy = f"; {REMEDIES[full]}" if full in REMEDIES else nearest(str(value), choices, 0.6)
            raise ConfigError(f"{full} must be {expected(hint)}, not {written(value)}{remedy}")
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and full in CLASSES:
                _check_class(full, entry, everything)


def _check_class(path: str, entry: dict[str, Any], everything: Mapping[str, Mapping[str, Any]]) -> None:
    """An entry that names a class, and its arguments if the class is one of ours."""
    name, given = entry.get("class_path"), entry.get("init_args") or {}
    if not isinstance(name, str) or set(entry) - {"class_path", "init_args", "dict_kwargs"}:
        raise ConfigError(f"{path} takes a class_path and its init_args, not {written(entry)}")
    if not name.startswith("transformer2."):
        return  # a third party's: checked when it is built
    try:
        known = arguments(name)
    except LookupError as e:
        raise ConfigError(f"{path}: there is no class {name}") from e
    _check(f"{path}.{name.rpartition('.')[2]}", given, known, everything)


def _check_built(key: str, given: dict[str, Any], everything: Mapping[str, Mapping[str, Any]]) -> None:
    """What builds the optimizer or its schedule: the class of torch's or ours is there and takes the arguments."""
    path = given.setdefault("class_path", default_class(key))
    if not path.startswith(("torch.optim.", "transformer2.")):
        return  # a third party's: checked when it is built
    try:
        (_, *names), known = arguments(path), arguments(path)  # the first is what it is built over
    except LookupError as e:
        raise ConfigError(f"model.{key}: there is no class {path}") from e
    ranges = OPTIMIZER_RANGES if key == "optimizer" else {}
    own = {name: replace(known[name], hint=ranges.get(name, known[name].hint)) for name in names}
    _check(f"model.{key}", given["init_args"], own, {**everything, f"model.{key}": own})
    for name in own:
        if path.startswith("transformer2.") and (default := own[name].default) is not None:
            # Left out, jsonargparse would take it from the class that the module builds by itself.
            given["init_args"].setdefault(name, literal_eval(default))
        if own[name].default is None and name not in given["init_args"]:
            raise ConfigError(f"model.{key} {path.rpartition('.')[2]} needs {name}; give --{key}.{name}")


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
