"""Expert folders: read, and written so that they are whole or absent. What is in one: svf/adapter_folder.py."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from transformer2.errors import ExpertError, shown
from transformer2.files import MANIFEST, fresh_folder, manifest, read_file, write_text
from transformer2.svf.adapter_folder import check_delta, read_adapter, read_config, sealed_files
from transformer2.svf.card import write_card
from transformer2.svf.format import (
    CONFIG,
    LARGEST_EXPERT,
    TRAINED_ON,
    WEIGHTS,
    checksums,
    delta_key,
    module_of,
    name_of,
)

__all__ = [
    "Expert", "check_name", "read_expert", "save_expert", "seal_adapter", "stamp_expert",
]  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Expert:
    """One z per tuned matrix, with where it came from.

    Attributes:
        name: `[A-Za-z0-9._-]{1,64}`.
        path: Its folder; None for one that is in memory only.
        task: Task it was trained on.
        step: Optimizer step of its weights.
        score: Validation accuracy there, in [0, 1].
        base: Base model, as its config names it.
        base_fingerprint: "<arch>:<weights>" of the base model.
        deltas: Module path -> effective z - 1, fp32 (r,), on the CPU; entry i is of the i-th largest singular value.
        sha256: Of the weights file.
        base_quantisation: How its base was quantised in training; None means not at all.
        revision: Of the base model, where it was loaded from the Hub at one.
        shuffled: The seed by which its z was put in another order; None means as trained.
        shots: Digests of the few-shot rows it was made with, which it is not scored on.
        protocol: `clean` or `paper`, under which it was made; None where it does not say.
    """

    name: str
    path: Path | None = None
    task: str | None = None
    step: int | None = None
    score: float | None = None
    base: str | None = None
    base_fingerprint: str | None = None
    deltas: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    sha256: str | None = field(default=None, repr=False)
    base_quantisation: str | None = None
    revision: str | None = None
    shuffled: int | None = None
    shots: list[str] | None = field(default=None, repr=False)
    protocol: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "deltas", MappingProxyType(dict(self.deltas)))


# What an expert and its adapter_config.json say in the same words.
_FACTS = [fact.name for fact in fields(Expert) if fact.name not in ("name", "path", "base", "deltas")]


def read_expert(folder: str | Path, name: str | None = None) -> Expert:
    """Read and verify an expert folder.

    Args:
        folder: The folder.
        name: What to call it; None takes `name_of` the folder.

    Raises:
        ExpertError: See `read_adapter`; or `folder` is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ExpertError(f"an expert is given as the path of its folder, not {shown(repr(folder), 60)}")
    folder = Path(folder).expanduser()
    config, tensors = read_adapter(folder, only_z=True)
    deltas = {str(module_of(key)): delta_R for key, delta_R in tensors.items()}
    return Expert(
        name=name_of(folder) if name is None else name,
        path=folder,
        base=config["base_model_name_or_path"],
        deltas=dict(sorted(deltas.items(), key=lambda item: _natural(item[0]))),
        **{key: config.get(key) for key in _FACTS},
    )


def check_name(name: str) -> str:
    """The name, when it is a good one.

    Raises:
        ExpertError: It is not `[A-Za-z0-9._-]{1,64}`, or is only dots.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not name.strip("."):
        raise ExpertError(f"expert name {shown(repr(name), 80)} is not 1 to 64 of A-Z a-z 0-9 . _ -; rename it")
    return name


def save_expert(expert: Expert, folder: str | Path, overwrite: bool = False) -> Path:
    """Write an expert as a folder that `PeftModel.from_pretrained` and `read_expert` load.

    Everything is written and fsynced in a temp folder next to the target, which is then renamed.

    Args:
        expert: The expert; its deltas are written as fp32.
        folder: The target.
        overwrite: Replace an existing folder; its old content is kept until the new one is in place.

    Raises:
        ExpertError: Nothing or non-finite values to save, an existing folder, or a folder that cannot be
            written.
    """
    from transformer2.svf.config import SVFConfig

    folder = Path(os.path.abspath(Path(folder).expanduser()))
    if not expert.deltas:
        raise ExpertError(f"expert {expert.name!r} tunes no matrix; there is nothing to save")
    for module, delta_R in expert.deltas.items():
        if module_of(delta_key(module)) is None:
            raise ExpertError(f"{module!r} is not a module path; an expert maps module paths to z - 1")
        check_delta(f"expert {expert.name!r}", module, delta_R)
    if folder.exists() and not overwrite:
        raise ExpertError(f"{folder} exists; choose another folder, or overwrite it on purpose")
    # PEFT's own config class writes the file, so what PEFT expects in it is there.
    config = SVFConfig(
        target_modules=sorted(expert.deltas),
        base_model_name_or_path=expert.base,
        inference_mode=True,
        **{key: getattr(expert, key) for key in _FACTS},  # but sha256, which is that of the file, once it is written
    )
    weights = {delta_key(module): delta_R.contiguous() for module, delta_R in expert.deltas.items()}
    try:
        with fresh_folder(folder) as fresh:
            save_file(weights, fresh / WEIGHTS, metadata={"format": "pt"})
            config.save_pretrained(str(fresh))
    except (OSError, SafetensorError) as e:
        raise ExpertError(
            f"expert folder {folder} cannot be written: {e}; free some space or choose another one"
        ) from e
    return folder


def seal_adapter(folder: Path, trained_on: Mapping[str, Any] | None = None) -> None:
    """Write what PEFT left out next to what it saved, unless it is an SVF expert, which carries it: rows, checksums."""
    if read_config(folder)["peft_type"] != "SVF":
        if trained_on:
            (folder / TRAINED_ON).write_text(json.dumps(trained_on), encoding="utf-8")
        (folder / MANIFEST).write_text(manifest(folder, sealed_files(folder), ExpertError), encoding="utf-8")


def stamp_expert(folder: str | Path) -> Path:
    """Write the checksums of an SVF expert as it is now: after its config was edited on purpose, or for an old format.

    Raises:
        ExpertError: It is not an SVF expert, its weights cannot be one's, or it cannot be written.
    """
    folder = Path(folder).expanduser()
    config = read_config(folder)
    if config["peft_type"] != "SVF":
        raise ExpertError(f"{folder / CONFIG}: peft_type {config['peft_type']!r} has no checksums")
    weights = read_file(folder / WEIGHTS, LARGEST_EXPERT, ExpertError)
    config = checksums(config, weights)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    try:
        with tempfile.TemporaryDirectory(prefix=".stamp.", dir=folder) as temp:
            (Path(temp) / WEIGHTS).write_bytes(weights)
            write_text(Path(temp) / CONFIG, text)
            read_adapter(temp)
        write_text(folder / CONFIG, text)
        write_card(folder, config)
    except OSError as e:
        raise ExpertError(f"{folder} cannot be written: {e.strerror}; check its permissions") from e
    return folder


def _natural(module: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in module.split(".")]
