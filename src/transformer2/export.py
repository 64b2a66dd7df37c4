"""The policy as a plain model folder, for tools that know no adapters: what lm-eval, vLLM and others read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from transformer2.errors import UserError, one_line
from transformer2.files import fresh_folder
from transformer2.halving import is_out_of_memory
from transformer2.svf.base_folder import on_disk
from transformer2.svf.targets import language_model

__all__ = ["export_merged", "new_folder"]

# Of the base's folder: what prepares pictures, and may need packages that are not here to be loaded and saved again.
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


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
        tokenizer: Saved next to it, chat template included; so is the processor of a base that takes pictures.
        folder: A new or empty folder.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds files, the adapter cannot be merged, or there is no processor.
    """
    folder = new_folder(folder)
    base, kind = policy.get_base_model(), policy.peft_config[policy.active_adapter].peft_type.value
    processor = _processor_files(base)
    with torch.device("meta"):
        names = set(type(base)(base.config).state_dict())
    try:
        policy.merge_adapter(safe_merge=True)  # checked before it is written over the base's weights
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as e:
        if isinstance(e, UserError) or is_out_of_memory(e):
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
        if damaged := next((name for name, value in weights.items() if not torch.isfinite(value).all()), None):
            raise UserError(f"{damaged} is not finite with the adapter merged; nothing was written. Is it damaged?")
        with fresh_folder(folder) as fresh:  # whole or absent
            base.save_pretrained(fresh, state_dict=weights)
            tokenizer.save_pretrained(fresh)
            for file in processor:
                shutil.copyfile(file, fresh / file.name)
            if folder.exists():
                folder.rmdir()
    except OSError as e:
        raise UserError(f"{folder} cannot be written: {e.strerror or e}; free some space or choose another one") from e
    finally:
        policy.unmerge_adapter()
    return folder


def _processor_files(base: PreTrainedModel) -> list[Path]:
    source = on_disk(str(base.config._name_or_path))
    found = [] if source is None else [source / name for name in _PROCESSOR if (source / name).is_file()]
    if language_model(base) and not found:
        raise UserError(
            f"the base takes pictures, and {source or 'its folder'} has no {_PROCESSOR[0]} to export with it; save the "
            "model's own there: AutoProcessor.from_pretrained(ORIGINAL).save_pretrained(FOLDER)"
        )
    return found
