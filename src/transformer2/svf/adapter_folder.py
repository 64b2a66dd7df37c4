"""Read an adapter folder without trusting it.

    adapter_config.json        peft_type SVF, base model, task, step, score, base_fingerprint, sha256 of the weights,
                               config_sha256 of all of these
    adapter_model.safetensors  base_model.model.<module path>.svf_z.delta, fp32 (r,): z - 1; nothing else
    README.md                  model card

safetensors alone loads flipped bits, NaN and a tensor named `../../x`; JSON with a flipped digit is JSON. So every key,
shape, dtype, value and both checksums are looked at here, for our own readers and for PEFT's (svf/register.py), and
each fault is an `ExpertError` of one line that names file, field and remedy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from transformer2.errors import ExpertError, shown
from transformer2.files import MANIFEST, check_directory, manifest, read_file, whole_folder
from transformer2.svf.format import (
    CONFIG,
    FORMAT_VERSION,
    LARGEST_ADAPTER,
    LARGEST_CONFIG,
    LARGEST_EXPERT,
    OLD_FIELDS,
    OLD_FORMS,
    ROLES,
    TRAINED_ON,
    WEIGHTS,
    config_sha256,
    delta_key,
    module_of,
)

__all__ = ["check_delta", "config_for_peft", "read_adapter", "read_config", "read_trained_on", "sealed_files"]

_FIELDS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "step": (int,),
    "score": (float, int),
    "base_model_name_or_path": (str,),
    "revision": (str,),
    "base_fingerprint": (str,),
    "base_quantisation": (str,),
    "sha256": (str,),
    "config_sha256": (str,),
    "expert_format_version": (int,),
    "modules_to_save": (list,),
}
# Absent, and so no part of the checksum, in earlier experts.
_LATER: dict[str, tuple[type, ...]] = {"shuffled": (int,), "shots": (list,), "protocol": (str,)}


def read_config(folder: str | Path) -> dict[str, Any]:
    """adapter_config.json of any of PEFT's adapters. An SVF expert's fields are there, None where absent, and typed.

    Raises:
        ExpertError: No such folder or file, not JSON, no peft_type, or an odd field.
    """
    folder = whole_folder(Path(folder).expanduser())
    check_directory(folder, "expert folder", f"give one, which holds {CONFIG} and {WEIGHTS}", ExpertError)
    file = _at(folder)
    try:
        config = json.loads(read_file(folder / CONFIG, LARGEST_CONFIG, ExpertError).decode())
    except (ValueError, RecursionError) as e:
        if isinstance(e, ExpertError):
            raise
        raise ExpertError(f"{file} is not JSON ({type(e).__name__}); copy the expert folder again") from e
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ExpertError(f"{file}: field 'peft_type' does not name a method of PEFT; this is not an adapter of PEFT's")
    if config["peft_type"] != "SVF":
        return config
    config = dict.fromkeys(_FIELDS) | config
    for name, kinds in {**_FIELDS, **_LATER}.items():
        value = config.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ExpertError(
                f"{file}: field {name!r} is {shown(value, 40)!r}, not {kinds[0].__name__}; correct the file"
            )
    if (config["expert_format_version"] or 1) > FORMAT_VERSION:
        raise ExpertError(
            f"{file}: field 'expert_format_version' is {config['expert_format_version']}, this transformer2 reads up "
            f"to {FORMAT_VERSION}; upgrade transformer2"
        )
    if config["score"] is not None and not 0 <= config["score"] <= 1:
        raise ExpertError(f"{file}: field 'score' is {config['score']}, not in [0, 1]; correct the file")
    return config


def read_trained_on(folder: str | Path) -> dict[str, Any]:
    """What an adapter of any of PEFT's methods says of the rows it was made with: `shots` and `protocol`, or None.

    Raises:
        ExpertError: See `read_config`.
    """
    found = read_config(folder)
    file = whole_folder(Path(folder).expanduser()) / TRAINED_ON
    if found["peft_type"] != "SVF" and file.exists():
        _check_manifest(file.parent)
        try:
            found = dict(json.loads(read_file(file, LARGEST_CONFIG, ExpertError)))
        except (ValueError, TypeError, RecursionError) as e:
            raise ExpertError(f"{shown(str(file))} is no JSON object; copy the folder again") from e
    return {name: found.get(name) for name in ("shots", "protocol")}


def read_adapter(folder: str | Path, only_z: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of any of PEFT's adapters, held against their checksums. An SVF expert's has a `sha256`.

    Args:
        folder: The folder.
        only_z: Refuse what is more than z, or other than z.

    Raises:
        ExpertError: Missing, truncated, flipped, foreign or odd in any way; the message names file and field.
    """
    folder = whole_folder(Path(folder).expanduser())
    config, file = read_config(folder), shown(str(folder / WEIGHTS))
    svf = config["peft_type"] == "SVF"
    if only_z and not svf:
        kind = shown(config["peft_type"], 40)
        raise ExpertError(f"{_at(folder)}: field 'peft_type' is {kind!r}, not 'SVF'; this is not an SVF expert")
    if only_z and config["modules_to_save"]:
        whole = shown(", ".join(map(str, config["modules_to_save"])), 80)
        raise ExpertError(
            f"{_at(folder)}: field 'modules_to_save' names modules trained whole ({whole}), which cannot be mixed or "
            "scored as z; load the folder with PeftModel.from_pretrained"
        )
    data = read_file(folder / WEIGHTS, LARGEST_EXPERT if svf else LARGEST_ADAPTER, ExpertError)
    digest = hashlib.sha256(data).hexdigest()
    if svf and config["sha256"] not in (None, digest):
        raise ExpertError(
            f"{file}: its sha256 differs from field 'sha256' of {CONFIG}; the file is damaged or was "
            "replaced, copy the folder again"
        )
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ExpertError(
            f"{file} is not readable as safetensors ({shown(e, 80)}); copy the expert folder again"
        ) from e
    if not tensors:
        raise ExpertError(f"{file} holds no tensors; copy the expert folder again")
    for key, tensor in tensors.items():
        if svf and module_of(key):
            check_delta(file, key, tensor)
        elif svf and not config["modules_to_save"]:
            raise ExpertError(
                f"{file}: tensor {shown(key, 80)!r} is not '{delta_key('<module path>')}'; this is not an SVF expert"
            )
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            _raise_non_finite(file, shown(key, 80))
    if svf:
        _check_config_sha256(folder, config)
        config["sha256"] = digest
    else:
        _check_manifest(folder)
    return config, tensors


def config_for_peft(file: str | Path) -> dict[str, Any] | None:
    """What PEFT is given when it reads an adapter_config.json: an SVF expert's once it was verified; else None.

    The weights are verified where they lie next to it (from the Hub, PEFT downloads them later). An untrusted
    regular expression may take years to match; the weights name the tuned modules, so these names replace it.

    Raises:
        ExpertError: See `read_adapter`.
    """
    folder = Path(file).parent
    data = read_file(file, LARGEST_CONFIG, ExpertError)
    if not any(mark in data for mark in (b'"SVF"', b'"expert_format_version"')):
        return None
    config = read_config(folder)
    if config["peft_type"] != "SVF":
        if "expert_format_version" not in config:
            return None
        raise ExpertError(
            f"{_at(folder)}: field 'peft_type' is {shown(config['peft_type'], 40)!r}, not 'SVF'; the file is damaged"
        )
    if (folder / WEIGHTS).exists():
        _, tensors = read_adapter(folder)
        target, named = config.get("target_modules"), isinstance(config.get("exclude_modules"), str)
        if (isinstance(target, str) and target not in ROLES) or named or config.get("layers_pattern"):
            config["target_modules"] = list(filter(None, map(module_of, sorted(tensors))))
            config |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    else:
        _check_config_sha256(folder, config)
    if config.get("form") in OLD_FORMS:
        config["form"] = "delta"
    return {key: value for key, value in config.items() if key not in OLD_FIELDS}


def _check_config_sha256(folder: Path, config: Mapping[str, Any]) -> None:
    stamped = config["config_sha256"]
    if stamped is None and (config["expert_format_version"] or 1) < 2:
        return  # an expert from before there was one
    if stamped != config_sha256(config):
        raise ExpertError(
            f"{_at(folder)} differs from its field 'config_sha256'; the file is damaged or was edited: copy the folder "
            "again, or accept it as it is with `transformer2 experts stamp`"
        )


def _check_manifest(folder: Path) -> None:
    if not (folder / MANIFEST).exists():
        return  # PEFT saved it, or an earlier version of ours
    sealed = read_file(folder / MANIFEST, LARGEST_CONFIG, ExpertError).decode(errors="replace")
    if sealed != manifest(folder, sealed_files(folder), ExpertError):
        raise ExpertError(
            f"{shown(str(folder))}: {CONFIG} or {WEIGHTS} differs from {MANIFEST}; it is damaged or was edited: copy "
            f"the folder again, or accept it as it is by deleting {MANIFEST}"
        )


def sealed_files(folder: Path) -> tuple[str, ...]:
    """What the checksums of an adapter that is no SVF expert are of."""
    return CONFIG, WEIGHTS, *([TRAINED_ON] if (folder / TRAINED_ON).exists() else [])


def _at(folder: Path) -> str:
    return shown(str(folder / CONFIG))


def check_delta(where: str, key: str, delta_R: Tensor) -> None:
    """Refuse what cannot be a z - 1.

    Raises:
        ExpertError: Another dtype or shape, or values that are not finite.
    """
    if delta_R.dtype != torch.float32 or delta_R.ndim != 1 or delta_R.numel() == 0:
        raise ExpertError(
            f"{where}: {key!r} is {delta_R.dtype} {tuple(delta_R.shape)}, z - 1 must be float32 (r,); save it again"
        )
    if not bool(torch.isfinite(delta_R).all()):
        _raise_non_finite(where, key)


def _raise_non_finite(where: str, key: str) -> None:
    raise ExpertError(f"{where}: {key!r} has non-finite values; the training diverged or the file is damaged")
