"""The policy as a plain model folder, for tools that know no adapters: what lm-eval, vLLM and others read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from transformer2.errors import UserError, one_line
from transformer2.files import replace_folder

__all__ = ["export_merged", "new_folder"]


def new_folder(folder: str | Path) -> Path:
    """The absolute path of a folder to export to.

    Raises:
        UserError: It holds files, or is one.
    """
    folder = Path(os.path.abspath(Path(folder).expanduser()))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name a new one to export to")
    return folder


def export_merged(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write the policy as a plain model folder, with the active adapter merged.

    Without a second copy of the weights in memory; an SVF policy is bit for bit what it was before.

    Args:
        policy: The model; its weights must be whole and not quantised.
        tokenizer: Saved next to it, chat template included.
        folder: A new or empty folder.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds files, or the adapter cannot be merged.
    """
    folder = new_folder(folder)
    base, kind = policy.get_base_model(), policy.peft_config[policy.active_adapter].peft_type.value
    with torch.device("meta"):
        names = set(type(base)(base.config).state_dict())
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")  # whole or absent
    try:
        policy.merge_adapter()
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as e:
        if isinstance(e, UserError | torch.OutOfMemoryError):
            raise
        raise UserError(f"this {kind} adapter cannot be merged: {one_line(e)}") from e
    try:
        plain = {
            name.replace(".modules_to_save.default.", ".").replace(".base_layer.", "."): value
            for name, value in base.state_dict().items()
        }
        weights = {name: plain[name] for name in names & plain.keys()}  # not the adapter's own
        if missing := sorted(names - weights.keys()):
            raise UserError(f"this {kind} adapter leaves no {missing[0]} when it is merged, so it cannot be exported")
        base.save_pretrained(fresh, state_dict=weights)
        tokenizer.save_pretrained(fresh)
        if folder.exists():
            folder.rmdir()
        replace_folder(fresh, folder)
    except OSError as e:
        raise UserError(f"{folder} cannot be written: {e.strerror or e}; free some space or choose another one") from e
    finally:
        policy.unmerge_adapter()
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
