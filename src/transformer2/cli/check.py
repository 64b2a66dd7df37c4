"""Every key and value of a composed config, checked in half a second of CPU: before the heavy imports, before a folder.

The constructors check types and ranges again, for those who come from Python.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import yaml

from transformer2 import tasks
from transformer2.adaptation import STRATEGIES
from transformer2.arguments import OPTIMIZER_RANGES, Count, Seed, expected, fits, written
from transformer2.cli.optimizers import HOMES, MODEL, class_and_arguments, default_class
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

KEYS = ("name", "seed_everything", "model", "data", "trainer")  # of a config
ADAPT_KEYS = (*KEYS, "adapt", "strategy")
DATA = "transformer2.data.modules.ExpertDataModule"
UNSEEN_DATA = "transformer2.data.unseen.UnseenTaskDataModule"
FEW_SHOT_DATA = "transformer2.data.unseen.FewShotDataModule"
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"

_Batches = Annotated[int, ">= 0"] | Annotated[float, ">= 0", "<= 1"] | None
LIGHTNING: dict[str, Any] = {  # what Lightning's own annotations leave open, and what our step does not do
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps"],
    "callbacks": list[dict[str, Any] | str] | dict[str, Any] | None,
    "check_val_every_n_epoch": Count | None,
    "deterministic": bool | Literal["warn"] | None,
    "devices": Annotated[int, ">= 1", "<= 1024"] | Literal[-1, "auto", "-1"] | list[Annotated[int, ">= 0"]],
    "fast_dev_run": Annotated[int, ">= 0"] | bool,
    "logger": bool | dict[str, Any] | list[dict[str, Any]] | None,
    "log_every_n_steps": Annotated[int, ">= 0"] | None,
    "max_epochs": Count | Literal[-1] | None,
    "max_steps": Count | Literal[-1],
    "min_epochs": Count | None,
    "min_steps": Count | None,
    "num_nodes": Count,
    "num_sanity_val_steps": Annotated[int, ">= -1"] | None,
    "overfit_batches": _Batches,
    "plugins": dict[str, Any] | list[dict[str, Any]] | None,
    "profiler": Literal["simple", "advanced", "pytorch"] | dict[str, Any] | None,
    "precision": Literal[32, "32", "32-true"] | None,
    "reload_dataloaders_every_n_epochs": Annotated[int, ">= 0"],
    "strategy": Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"]
    | dict[str, Any],
    "val_check_interval": Count | Annotated[float, "> 0", "<= 1"] | str | dict[str, Any] | None,
    **{f"limit_{split}_batches": _Batches for split in ("train", "val", "test", "predict")},
}
TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "max_steps": 100,
    "max_epochs": -1,
    "val_check_interval": 10,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}
CLASSES = {f"trainer.{key}" for key in ("callbacks", "logger", "plugins", "profiler", "strategy")}
# The rows that a command cannot do without (validation, in fit, it can); others read none.
RUNS = {"fit": ("train", "test"), "validate": ("val",), "test": ("test",), "adapt": ("test",)}
REMEDIES = {
    "seed_everything": "several seeds are several runs",
    "trainer.strategy": "add one of --config conf/strategy/{ddp,zero2,zero3,zero3_offload}.yaml",
}
LINKED = {  # keys that take the value of another
    "data.base": "model.base",
    "data.model_kwargs": "model.model_kwargs",
    "data.objective": "model.objective",
    "data.seed": "seed_everything",
    "model.seed": "seed_everything",
    "data.max_new_tokens": "model.sampling.max_new_tokens",
}
ELSEWHERE = LINKED | {
    "trainer.default_root_dir": "--run_dir",
    "trainer.gradient_clip_val": "model.max_grad_norm",
    "trainer.gradient_clip_algorithm": "model.max_grad_norm",
    "trainer.precision": "model.dtype, for the base; z is trained in fp32",
    "trainer.accumulate_grad_batches": "data.batch_size (prompts of a step), model.memory.micro_batch_tokens",
}
UNREAD = re.compile(  # what `adapt` does not read, and a config that is shared with `fit` may hold all the same
    r"model\.((objective|optimizer|lr_scheduler|max_grad_norm|loss|rollout|vllm|test)(\..*)?|sampling\.(temperature"
    r"|num_completions)|memory\.(micro_batch_tokens|activation_checkpointing))|trainer\.((max|min)_(steps|epochs)|max_time"
    r"|limit_(train|val|predict)_batches|overfit_batches|val_check_interval|check_val_every_n_epoch|num_sanity_val_steps"
    r"|log_every_n_steps|reload_dataloaders_every_n_epochs|enable_checkpointing|detect_anomaly)"
)
SYNONYMS = {  # what PEFT, TRL, transformers, verl, Lightning and earlier versions of this package call our keys
    "model.optimizer.lr": ("learning_rate", "actor_lr"),
    "model.lr_scheduler": ("lr_scheduler_type", "scheduler", "lr_schedule"),
    "model.lr_scheduler.warmup_steps": ("num_warmup_steps", "warmup_ratio", "lr_warmup_steps"),
    "model.optimizer.betas": ("adam_beta1", "adam_beta2"),
    "model.optimizer.eps": ("adam_epsilon",),
    "model.max_grad_norm": ("gradient_clip_val", "clip_grad_norm", "grad_clip"),
    "model.sampling.num_completions": ("num_generations", "num_return_sequences", "group_size", "rollout_n"),
    "model.loss.baseline": ("advantage_estimator", "adv_estimator", "scale_rewards"),
    "model.loss.kl_coef": ("beta", "kl_beta", "init_kl_coef", "kl_loss_coef"),
    "model.loss.kl": ("kl_estimator", "kl_loss_type", "kl_type"),
    "model.sampling.max_new_tokens": ("max_completion_length", "max_response_length", "max_tokens", "max_length"),
    "model.memory.micro_batch_tokens": (
        "gradient_accumulation_steps",
        "accumulate_grad_batches",
        "ppo_micro_batch_size",
    ),
    "model.memory.activation_checkpointing": ("gradient_checkpointing",),
    "model.base": ("model_name_or_path", "model_name", "pretrained_model_name_or_path", "base_model", "model_id"),
    "model.dtype": ("torch_dtype", "precision", "bf16", "fp16"),
    "model.model_kwargs": ("load_in_4bit", "load_in_8bit", "quantization_config", "attn_implementation", "device_map"),
    "model.adapter": ("peft_config", "peft_type", "r", "lora_r", "lora_alpha", "lora_dropout"),
    "model.adapter.target_modules": ("target_modules",),
    "model.adapter.layers_to_transform": ("layers",),
    "model.adapter.basis_cache": ("cache_dir",),
    "model.rollout": ("use_vllm", "engine"),
    "model.test.samples": ("test_samples",),
    "model.test.temperature": ("test_temperature",),
    "model.loss.importance_cap": ("importance_sampling_cap", "vllm_importance_sampling_cap"),
    "data.batch_size": ("per_device_train_batch_size", "train_batch_size"),
    "data.eval_batch_size": ("per_device_eval_batch_size", "val_batch_size"),
    "data.task": ("dataset", "dataset_name", "train_dataset"),
    "data.drop_long_prompts": ("max_prompt_length", "filter_overlong_prompts"),
    "trainer.max_epochs": ("num_train_epochs", "epochs", "total_epochs"),
    "trainer.max_steps": ("total_steps", "num_steps", "total_training_steps"),
    "trainer.val_check_interval": ("eval_steps", "test_freq", "eval_interval"),
    "trainer.log_every_n_steps": ("logging_steps",),
    "trainer.devices": ("gpus", "num_gpus", "n_gpus_per_node"),
    "seed_everything": ("seed", "data_seed"),
    "name": ("run_name", "experiment_name"),
    "adapt.population": ("popsize", "population_size", "pop_size"),
    "adapt.generations": ("num_iterations", "iterations", "max_iterations"),
    "--run_dir": ("output_dir", "logging_dir", "save_dir", "default_root_dir"),
    "--ckpt_path": ("resume_from_checkpoint", "resume"),
}
DISPATCH = "prompt and cls read what is written; what was constrained is --strategy scores (adapt.classifier: whose z)"
OURS = {theirs: ours for ours, words in SYNONYMS.items() for theirs in words}
OURS |= {"quantisation": "--config conf/quantisation/KIND.yaml", "rollout": "--config conf/rollout/ENGINE.yaml"}


def sections(
    adapt: bool, strategies: Sequence[str] = tuple(STRATEGIES), few_shot: bool = False
) -> dict[str, dict[str, Argument]]:
    """Section -> key -> Argument, for `adapt` or for the commands around `fit`.

    Args:
        adapt: Whether for `adapt`.
        strategies: Whose settings `adapt` holds.
        few_shot: Whether a few rows are trained on, and the others tested.
    """
    data = arguments(UNSEEN_DATA if adapt else FEW_SHOT_DATA if few_shot else DATA)
    trainer = {k: Argument(LIGHTNING.get(k, a.hint), a.default, a.line) for k, a in arguments(TRAINER).items()}
    found = {"model": arguments(MODEL), "data": data, "trainer": trainer}
    if adapt:
        found["adapt"] = {key: a for strategy in strategies for key, a in arguments(STRATEGIES[strategy]).items()}
    return found


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
    check_together(config, trainer)
    for split in RUNS.get(command, ()):
        if trainer.get(f"limit_{split}_batches") == 0:
            raise ConfigError(f"trainer.limit_{split}_batches is 0, so {command} has nothing to do; leave it out")
    if folders and command in RUNS and (folder := data.get("data_dir")):
        check_directory(folder, "data.data_dir", "name the folder that holds the rows", DataError)
    for folder in (folders and (config.get("adapt") or {}).get("experts")) or []:
        check_directory(folder, "adapt.experts", "train that expert with fit, or name its folder", ConfigError)
    check_base(config["model"].get("base", "tiny"), on_disk=folders, planned=command == "plan")


def keys_help(adapt: bool) -> str:
    """Every key that is read, with its default and what it is, a line each."""
    lines = []
    for section, keys in sections(adapt).items():
        lines += ["", f"{section}:"]
        inner = {f"{k}.{part}": b for k, a in keys.items() if isinstance(a.hint, dict) for part, b in a.hint.items()}
        for key, argument in {**keys, **inner}.items():
            unread = f"{section}.{key}" in ELSEWHERE or (adapt and UNREAD.fullmatch(f"{section}.{key}"))
            if not unread and not isinstance(argument.hint, dict):
                words = f"  {key:<32} {argument.line.replace('``', '')}"
                own = TRAINER_DEFAULTS.get(key) if section == "trainer" else None
                default = str(own) if own is not None else (argument.default or "").replace("'", "")
                default = re.sub(r"lambda \w+: (\w+)\(\w+, ", r"\1(", default)
                default = default.replace("field(default_factory=list)", "[]").replace(
                    "field(default_factory=dict)", "{}"
                )
                width = 112 - len(default)
                words = words if len(words) <= width else f"{words[: width - 4]} ..."
                lines.append(f"{words} [{default.replace('None', 'null')}]")
    return "\n".join(lines) + "\n"


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


def suggestion(wrong: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    """`; did you mean model.loss.kl?` for a key that is none: by others' word, another section, its spelling."""
    section, _, key = wrong.rpartition(".")
    inner: dict[str, Any] = {
        f"{n}.{k}": a.hint for n, own in known.items() for k, a in own.items() if isinstance(a.hint, dict)
    }
    inner |= {"model.optimizer": OPTIMIZER_RANGES, "model.lr_scheduler": ("warmup_steps",)} if "model" in known else {}
    both = [*known.items(), *inner.items()]  # of an optimizer by name, both hold keys
    keys = [f"{n}.{k}" for n, own in both for k in own if f"{n}.{k}" not in ELSEWHERE]
    ours = OURS.get(key) or next((k for k in keys if k.endswith(f".{key}")), None)
    if ours is None:
        names = {k.rpartition(".")[2]: k for k in keys if k.startswith(f"{section}.")} or {k: k for k in keys}
        near = get_close_matches(key, names, n=1) or get_close_matches(wrong, keys, n=1, cutoff=0.8)
        ours = names.get(near[0], near[0]) if near else None
    return f"; did you mean {ours}?" if ours else "; --help lists the keys"
