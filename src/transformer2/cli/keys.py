"""The keys of a config: where each comes from, what it is called elsewhere, and the nearest to one that is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from transformer2.adaptation import STRATEGIES
from transformer2.arguments import OPTIMIZER_RANGES, Count
from transformer2.cli.optimizers import MODEL
from transformer2.cli.schema import Argument, arguments

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
