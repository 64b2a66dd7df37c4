"""Who a checkpoint is: it is scored or resumed with the policy and the task that wrote it, or refused.

The policy (method, options of the adapter, base, task, names of the weights) must be the run's. Settings may change on
resume (a longer run, another rate): they are named, and hold from there on. Validation scores compare with those that
follow as long as they are of the same questions, judged by the same task; else they are forgotten, with one warning.
"""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from transformer2.data.loader import PromptLoader, batches_within
from transformer2.errors import BasisError, CheckpointError
from transformer2.svf.fingerprint import fingerprint
from transformer2.svf.format import SAVED

if TYPE_CHECKING:
    from transformer2.module.training import SVFReinforceModule

KEY = "transformer2"
# Of an adapter's config: what is not what was trained, but bookkeeping, speed, or the start that a checkpoint replaces.
NOT_TRAINED = SAVED | {
    *("base_model_name_or_path", "peft_version", "auto_mapping", "revision", "task_type"),
    *("form", "basis_cache", "init_std", "init_lora_weights"),
}


def identity(module: SVFReinforceModule) -> dict[str, Any]:
    """The policy, and the settings it is trained with, as plain values."""
    data, trainer = getattr(module.trainer, "datamodule", None), module.trainer
    if module.base_fingerprint is None:
        try:
            module.base_fingerprint = fingerprint(module.policy)
        except BasisError:  # shards of a base from the Hub
            module.base_fingerprint = ""
    adapter = module.policy.peft_config["default"].to_dict()
    policy = {
        "task": data.task.name if data is not None else None,
        "base": module.base,
        "fingerprint": module.base_fingerprint,
        "dtype": str(next(p.dtype for p in module.policy.parameters() if not p.requires_grad)),
        **{f"adapter.{key}": value for key, value in adapter.items() if key not in NOT_TRAINED},
    }
    names = ("task_source", "batch_size", "seed", "data_dir", "limits", "chat_template", "max_new_tokens", "few_shot")
    settings = dict(module.rate)
    for key, value in module.arguments.items():
        if is_dataclass(value):
            settings |= {f"model.{key}.{name}": own for name, own in vars(value).items()}
        else:
            settings[f"model.{key}"] = None if value == {} else value  # as earlier checkpoints say it
    settings |= {f"data.{name}": getattr(data, name) for name in (*names, "protocol") if hasattr(data, name)}
    if trainer.state.fn == "fit" and data is not None and hasattr(data, "digest"):
        settings |= {f"data.{split}": data.digest(split) for split in ("train", "validation")}
    settings |= {"trainer.max_steps": module.total_steps if trainer.state.fn == "fit" else trainer.max_steps}
    whole = {"policy": policy, "settings": settings, "began_with": module.began_with, "validation": validation(module)}
    return json.loads(json.dumps(whole, default=_plain))


def validation(module: SVFReinforceModule) -> dict[str, Any] | None:
    """What a fit's validations are made of: questions, task, what ends an answer; None for data of another kind."""
    trainer = module.trainer
    data: Any = getattr(trainer, "datamodule", None)
    if trainer.state.fn != "fit" or not hasattr(data, "digest"):
        return None
    loader = data.val_dataloader()
    ours = isinstance(loader, PromptLoader)
    asked = loader.prompts_in(batches_within(loader, trainer.limit_val_batches)) if ours else None
    return {
        "questions": asked,
        "rows": data.digest("validation", asked),
        "task_source": getattr(data, "task_source", None),
        "max_new_tokens": module.sampling.max_new_tokens or data.task.max_new_tokens,
        "stop": sorted(map(str, module.sampling.stop or ())),
    }


def other_validation(module: SVFReinforceModule, checkpoint: dict[str, Any]) -> str:
    """What the checkpoint's validations were made of that this run's are not, in words; empty where they compare."""
    saved, ours = checkpoint[KEY], validation(module)
    if ours is None:
        return ""
    then = saved.get("validation")
    if then is None:  # of an older version, which kept the digest of the whole split alone
        then, ours = ({"rows": s["settings"].get("data.validation")} for s in (saved, identity(module)))
    return ", ".join(f"{key} {then.get(key)} -> {now}" for key, now in ours.items() if then.get(key) != now)


def check_identity(module: SVFReinforceModule, checkpoint: dict[str, Any]) -> set[str]:
    """The settings that a resumed run changes.

    Raises:
        CheckpointError: The checkpoint is of another policy or task; with its word and the run's.
    """
    if KEY not in checkpoint:
        raise CheckpointError("--ckpt_path does not say what it trained; it was not written by this transformer2")
    whole, fitting = identity(module), module.trainer.state.fn == "fit"
    if module.expert is not None and (not fitting or checkpoint[KEY]["began_with"] != whole["began_with"]):
        raise CheckpointError(
            f"--ckpt_path {'is of a run that did not begin with' if fitting else 'would take the place of'} --expert "
            f"{module.expert}; leave one of them out"
        )
    module.began_with = checkpoint[KEY]["began_with"]
    theirs, ours = checkpoint[KEY]["policy"], whole["policy"]
    if theirs["task"] != ours["task"]:
        verb = "start from" if fitting else "score"
        raise CheckpointError(
            f"--ckpt_path is a run of task {theirs['task']}, this is one of {ours['task']}; to {verb} what it trained, "
            "give the expert folder of that run: --expert"
        )
    # Another dtype rounds the weights: only the architecture can be compared then.
    parts = 2 if theirs["dtype"] == ours["dtype"] else 1
    mine, other = (who["fingerprint"].split(":")[:parts] for who in (ours, theirs))
    if all(mine + other) and mine != other:
        raise CheckpointError(
            f"--ckpt_path was trained on another base: {theirs['base']}, not this run's {ours['base']}"
        )
    method = "adapter.peft_type"  # before its own options
    for key in [method, *sorted({*theirs, *ours} - {"task", "base", "dtype", "fingerprint", method})]:
        if theirs.get(key) != ours.get(key):
            raise CheckpointError(
                f"--ckpt_path was trained with {key} {theirs.get(key)}, this run has {ours.get(key)}; set model.{key} "
                "to what it was trained with, or begin with its expert folder: --expert"
            )
    state = checkpoint.get("state_dict")  # DeepSpeed keeps its own
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    if state is not None and state.keys() != trained:
        name = sorted(state.keys() ^ trained)[0]
        raise CheckpointError(
            f"--ckpt_path does not fit: only the {'checkpoint' if name in state else 'run'} has {name}"
        )
    new = whole["settings"]
    # What older checkpoints do not say.
    old = {
        "model.objective": "reinforce",
        "data.task_source": new.get("data.task_source"),
        **checkpoint[KEY]["settings"],
    }
    if fitting and "model.optimizer" not in old:
        raise CheckpointError(
            "--ckpt_path was written by a transformer2 whose settings had other names and is not resumed; `test "
            "--ckpt_path` scores it, and a run may begin with what it trained: --expert"
        )
    if fitting and old["model.optimizer"] != new["model.optimizer"]:
        raise CheckpointError(
            f"--ckpt_path holds the state of {old['model.optimizer']}, this run's model.optimizer is "
            f"{new['model.optimizer']}; resume with the same"
        )
    was, asked = old["model.objective"], new["model.objective"]
    if fitting and was != asked:
        raise CheckpointError(
            f"--ckpt_path was trained with model.objective {was}, not {asked}; resume with the same, or begin with "
            "what it trained: --expert"
        )
    drawn = ["data.few_shot", "data.protocol", "data.seed", *(["data.train"] if fitting else [])]
    if "data.few_shot" in old and any(old.get(key) != new.get(key) for key in drawn):
        said = ", ".join(f"{key} {old.get(key)}" for key in drawn[:3])
        raise CheckpointError(
            f"--ckpt_path was trained on shots ({said}), and this run would score them; say the same of the same rows, "
            "or give its expert folder, which remembers them: --expert"
        )
    changed = {key for key in new if old.get(key) != new[key]} if fitting else set()
    if theirs["dtype"] != ours["dtype"]:
        changed.add("model.dtype")
    if changed:
        words = ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in sorted(changed))
        rank_zero_warn(f"other settings than the checkpoint's hold from here on: {words}")
    return changed


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
