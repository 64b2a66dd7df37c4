"""An expert folder: read it without trusting it, write it so that it is whole or absent.

    adapter_config.json        peft_type SVF, base model, task, step, score, base_fingerprint, sha256 of the weights
    adapter_model.safetensors  base_model.model.<module path>.svf_z.delta, fp32 (r,): z - 1; nothing else
    README.md                  model card

safetensors alone loads flipped bits, NaN and a tensor named `../../x`; so every key, shape, dtype, value and the
checksum are looked at here, and each fault is an `ExpertError` of one line that names file, field and remedy.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from transformer2.errors import ExpertError

__all__ = ["CONFIG", "WEIGHTS", "Expert", "check_name", "expert_folder", "read_expert", "replace_folder", "save_expert"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMAT_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"base_model\.model\.(?P<module>\w+(?:\.\w+)*)\.svf_z\.delta", re.ASCII)


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
    """

    name: str
    path: Path | None
    task: str | None
    step: int | None
    score: float | None
    base: str | None
    base_fingerprint: str | None
    deltas: Mapping[str, Tensor] = field(repr=False)
    sha256: str | None = field(default=None, repr=False)
    base_quantisation: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "deltas", MappingProxyType(dict(self.deltas)))


def read_expert(folder: str | Path, name: str | None = None) -> Expert:
    """Read and verify an expert folder.

    Args:
        folder: The folder.
        name: What to call it; None takes the folder's name, or for `runs/<name>/expert` the run's.

    Raises:
        ExpertError: Missing, truncated, flipped, foreign or odd in any way; the message names file and field.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ExpertError(f"{folder} is no folder; give an expert folder, which holds {CONFIG} and {WEIGHTS}")
    if name is None:
        resolved = folder.resolve()
        name = resolved.parent.name if resolved.name == "expert" else resolved.name
    check_name(name)
    config = _read_config(folder / CONFIG)
    data = _read_bytes(folder / WEIGHTS)
    sha256 = hashlib.sha256(data).hexdigest()
    if config["sha256"] is not None and config["sha256"] != sha256:
        raise ExpertError(
            f"{folder / WEIGHTS}: its sha256 differs from field 'sha256' of {CONFIG}; the file is damaged or was "
            "replaced, copy the folder again"
        )
    deltas = _read_deltas(folder / WEIGHTS, data)
    return Expert(
        name=name,
        path=folder,
        task=config["task"],
        step=config["step"],
        score=config["score"],
        base=config["base_model_name_or_path"],
        base_fingerprint=config["base_fingerprint"],
        base_quantisation=config["base_quantisation"],
        deltas=deltas,
        sha256=sha256,
    )


def expert_folder(root: str | Path, name: str) -> Path:
    """The folder of an expert inside a root folder.

    Raises:
        ExpertError: A name with other characters than `[A-Za-z0-9._-]`, or one that leads out of the root (a link).
    """
    root = Path(root).expanduser().resolve()
    folder = (root / check_name(name)).resolve()
    if not folder.is_relative_to(root):
        raise ExpertError(f"expert {name!r} leads to {folder}, outside {root}; copy it there instead of linking it")
    return folder


def check_name(name: str) -> str:
    """The name, when it is a good one.

    Raises:
        ExpertError: It is not `[A-Za-z0-9._-]{1,64}`, or is only dots.
    """
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise ExpertError(f"expert name {name[:80]!r} is not 1 to 64 of A-Z a-z 0-9 . _ -; rename the folder")
    return name


def save_expert(expert: Expert, folder: str | Path, overwrite: bool = False) -> Path:
    """Write an expert as a folder that `PeftModel.from_pretrained` and `read_expert` load.

    Everything is written and fsynced in a temp folder beside the target, which is then renamed.

    Args:
        expert: The expert; its deltas are written as fp32.
        folder: The target; its last component must be a good name.
        overwrite: Replace an existing folder; its old content is kept until the new one is in place.

    Raises:
        ExpertError: A bad name, nothing or non-finite values to save, an existing folder, or a folder that cannot be
            written.
    """
    from transformer2.svf.config import SVFConfig

    folder = Path(os.path.abspath(Path(folder).expanduser()))
    check_name(folder.name)
    if not expert.deltas:
        raise ExpertError(f"expert {expert.name!r} tunes no matrix; there is nothing to save")
    for module, delta_R in expert.deltas.items():
        _check_delta(f"expert {expert.name!r}", module, delta_R)
    if folder.exists() and not overwrite:
        raise ExpertError(f"{folder} exists; choose another folder, or overwrite it on purpose")
    # PEFT's own config class writes the file, so what PEFT expects in it is there.
    config = SVFConfig(
        target_modules=sorted(expert.deltas),
        base_model_name_or_path=expert.base,
        task=expert.task,
        step=expert.step,
        score=expert.score,
        base_fingerprint=expert.base_fingerprint,
        base_quantisation=expert.base_quantisation,
        inference_mode=True,
    )
    temp: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temp.chmod(0o755)
        save_file(
            {_key(m): d.contiguous() for m, d in expert.deltas.items()}, temp / WEIGHTS, metadata={"format": "pt"}
        )
        config.save_pretrained(str(temp))
        replace_folder(temp, folder)
    except (OSError, SafetensorError) as e:
        raise ExpertError(
            f"expert folder {folder} cannot be written: {e}; free some space or choose another one"
        ) from e
    finally:
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)
    return folder


def replace_folder(fresh: Path, target: Path) -> None:
    """Put a finished folder in the place of another one, which is kept until then.

    On Linux the two swap names in one step, so that a reader or a kill finds the old folder or the new one. Where the
    system or the file system cannot do that, two renames leave a moment without either at the target; a kill in it
    leaves the old one beside the target as `<fresh>.old`.

    Args:
        fresh: The new folder, beside the target.
        target: Where it goes; may exist.

    Raises:
        OSError: The folder cannot be moved.
    """
    for file in [*fresh.iterdir(), fresh]:
        _fsync(file)
    old = fresh.with_name(fresh.name + ".old")
    if not os.path.lexists(target):
        os.replace(fresh, target)
    elif _exchange(fresh, target):
        old = fresh
    else:
        os.replace(target, old)
        try:
            os.replace(fresh, target)
        except OSError:
            os.replace(old, target)
            raise
    _fsync(target.parent)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False, with nothing done, where that is impossible.

    Raises:
        OSError: It is possible, but failed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # Linux; Python has no name for it
    except (AttributeError, OSError, TypeError):
        return False
    cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(cwd, os.fsencode(a), cwd, os.fsencode(b), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))


def _key(module: str) -> str:
    key = f"base_model.model.{module}.svf_z.delta"
    if not _KEY.fullmatch(key):
        raise ExpertError(f"{module!r} is no module path; an expert maps module paths to z - 1")
    return key


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ExpertError(f"{file} is missing; copy the whole expert folder") from None
    except OSError as e:
        raise ExpertError(f"{file} cannot be read ({e.strerror}); check its permissions") from e


_FIELDS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "step": (int,),
    "score": (float, int),
    "base_model_name_or_path": (str,),
    "base_fingerprint": (str,),
    "base_quantisation": (str,),
    "sha256": (str,),
    "expert_format_version": (int,),
}


def _read_config(file: Path) -> dict[str, Any]:
    """The fields of an adapter_config.json that experts have, None where absent; each of the right type."""
    data = _read_bytes(file)
    try:
        config = json.loads(data.decode())
    except (ValueError, RecursionError) as e:
        raise ExpertError(f"{file} is not JSON ({type(e).__name__}); copy the expert folder again") from e
    if not isinstance(config, dict) or config.get("peft_type") != "SVF":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ExpertError(f"{file}: field 'peft_type' is {str(kind)[:40]!r}, not 'SVF'; this is no SVF expert")
    for name, kinds in _FIELDS.items():
        value = config.setdefault(name, None)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ExpertError(
                f"{file}: field {name!r} is {str(value)[:40]!r}, not {kinds[0].__name__}; correct the file"
            )
    if (config["expert_format_version"] or FORMAT_VERSION) > FORMAT_VERSION:
        raise ExpertError(
            f"{file}: field 'expert_format_version' is {config['expert_format_version']}, this transformer2 reads up "
            f"to {FORMAT_VERSION}; upgrade transformer2"
        )
    if config["score"] is not None and not 0 <= config["score"] <= 1:
        raise ExpertError(f"{file}: field 'score' is {config['score']}, not in [0, 1]; correct the file")
    return config


def _read_deltas(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ExpertError(f"{file} is not readable as safetensors ({str(e)[:80]}); copy the expert folder again") from e
    deltas = {}
    for key, delta_R in tensors.items():
        match = _KEY.fullmatch(key)
        if not match:
            raise ExpertError(
                f"{file}: tensor {key[:80]!r} is not 'base_model.model.<module path>.svf_z.delta'; "
                "this is no SVF expert"
            )
        _check_delta(str(file), key, delta_R)
        deltas[match["module"]] = delta_R
    if not deltas:
        raise ExpertError(f"{file} holds no tensors; copy the expert folder again")
    return dict(sorted(deltas.items(), key=lambda item: _natural(item[0])))


def _check_delta(where: str, key: str, delta_R: Tensor) -> None:
    if delta_R.dtype != torch.float32 or delta_R.ndim != 1 or delta_R.numel() == 0:
        raise ExpertError(
            f"{where}: {key!r} is {delta_R.dtype} {tuple(delta_R.shape)}, z - 1 must be float32 (r,); save it again"
        )
    if not bool(torch.isfinite(delta_R).all()):
        raise ExpertError(f"{where}: {key!r} has non-finite values; the training diverged or the file is damaged")


def _natural(module: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in module.split(".")]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
