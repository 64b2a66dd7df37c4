"""Checkpoint files that are whole or absent, say when they are damaged, and run no code when they are read.

    file     torch.save's zip with the SHA-256 of all that precedes it as its comment (the last 84 bytes), so that one
             rename replaces content and checksum together; `torch.load(path, weights_only=True)` reads it as it is
    folder   DeepSpeed's files, and a manifest of their SHA-256 that is written last

Both are written next to their target, fsynced, read back, and renamed (docs/adr/0008-checkpoints-and-signals.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from transformer2.errors import CheckpointError, shown
from transformer2.files import LAST, MANIFEST, fsync, manifest, read_file, whole_folder, write_file

__all__ = ["pack", "read_checkpoint", "seal_folder", "write_checkpoint"]

MARK = b"transformer2 sha256 "
SEAL = len(MARK) + 64
_KEPT = f"a run keeps {LAST}"


def pack(content: dict[str, Any]) -> bytes:
    """A checkpoint's content as the bytes of its file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()[:-2] + SEAL.to_bytes(2, "little")  # a zip file ends with the length of its comment
    return body + MARK + hashlib.sha256(body).hexdigest().encode()


def write_checkpoint(data: bytes, path: str | Path) -> None:
    """Put the bytes of `pack` in the place of a file, which stays as it is until they are on the disk.

    Raises:
        CheckpointError: They cannot be written, or could not be loaded again.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data, check=partial(_unpack, path))
    except OSError as e:
        raise CheckpointError(
            f"checkpoint {path} cannot be written ({e.strerror}), the one before it is intact; free some space, or "
            "give another --run_dir"
        ) from e


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: all of a file's, or a DeepSpeed folder's part that is not DeepSpeed's own.

    Raises:
        CheckpointError: It is missing, damaged, foreign, or holds more than tensors and plain values.
    """
    path = whole_folder(Path(path))
    try:
        if path.is_dir():
            return _read_folder(path)
        return _unpack(path, _read(path))
    except FileNotFoundError as e:
        missing = e.filename or path
        raise CheckpointError(f"--ckpt_path {missing} does not exist; {_KEPT}") from None
    except OSError as e:
        raise CheckpointError(f"--ckpt_path {path} cannot be read ({e.strerror}); check its permissions") from e


def seal_folder(folder: str | Path) -> None:
    """Put what DeepSpeed wrote on the disk, and the manifest of it last.

    Raises:
        OSError: The manifest cannot be written.
    """
    folder = Path(folder)
    listed = _manifest(folder)
    for file in folder.rglob("*"):
        fsync(file)
    (folder / MANIFEST).write_text(listed, encoding="utf-8")


def _read_folder(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is a folder without a {MANIFEST}; only DeepSpeed's checkpoints are folders")
    if read_file(folder / MANIFEST, 2**30, CheckpointError).decode(errors="replace") != _manifest(folder):
        raise CheckpointError(f"--ckpt_path {folder} is damaged: its files are not those of its {MANIFEST}")
    content: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.pt")):
        found = _load(file, file.read_bytes(), _deepspeed_classes())
        content = found if "loops" in found else content
    return content


def _deepspeed_classes() -> list[Any]:
    """What DeepSpeed pickles alongside tensors; its own loader would unpickle anything."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def member(kind: Any, name: str) -> Any:
        if kind is not ZeroStageEnum:
            raise ValueError(f"an attribute of {kind!r} is no plain value")
        return ZeroStageEnum[name]

    # Python 3.11.0 to 3.11.3 pickle the members of an enum by getattr, which is read as less than it is.
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, (member, "builtins.getattr")]


def _manifest(folder: Path) -> str:
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() and p.name != MANIFEST)
    return manifest(folder, files, CheckpointError)


def _read(path: Path) -> bytes:
    """The bytes of a regular file (a pipe or a device would never end) that ends with a seal."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"--ckpt_path {path} is not a file; {_KEPT}")
    with open(path, "rb") as file:  # found out before all of a large file is read
        file.seek(max(0, os.fstat(file.fileno()).st_size - SEAL))
        if not file.read(SEAL).startswith(MARK):
            raise CheckpointError(
                f"--ckpt_path {path} is damaged or no checkpoint of this version of transformer2: it does not end "
                f"with its checksum; {_good_one_beside(path)}"
            )
        file.seek(0)
        return file.read()


def _unpack(path: Path, data: bytes) -> dict[str, Any]:
    if not _is_whole(data):
        raise CheckpointError(
            f"--ckpt_path {path} is damaged: its SHA-256 is not the one that it ends with; {_good_one_beside(path)}"
        )
    content = _load(path, data)
    if "state_dict" not in content:
        raise CheckpointError(f"{path} is not a Lightning checkpoint; {_KEPT}")
    return content


def _is_whole(data: bytes) -> bool:
    return data[-SEAL:] == MARK + hashlib.sha256(data[:-SEAL]).hexdigest().encode()


def _load(path: Path, data: bytes, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([*allowed]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # torch has half a dozen types for this, and a page of advice in each
        if not (unsafe := _unsafe(data)):
            raise CheckpointError(
                f"--ckpt_path {path} is damaged: torch cannot read it; {_good_one_beside(path)}"
            ) from e
        raise CheckpointError(
            f"--ckpt_path {path} holds more than tensors and plain values, and loading that could run code "
            f"({shown(', '.join(unsafe))}); it is refused, whoever wrote it"
        ) from e
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a Lightning checkpoint; {_KEPT}")
    return content


def _unsafe(data: bytes) -> list[str]:
    """The classes and functions that a checkpoint would have torch import, beyond tensors' own."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:  # it is no file of torch.save
        return []


def _good_one_beside(path: Path) -> str:
    """The newest checkpoint in the same folder that is whole, for the error about one that is not."""
    with contextlib.suppress(OSError):
        files = [p for p in path.parent.glob("*.ckpt") if p.is_file() and p.name != path.name]
        for other in sorted(files, key=lambda p: p.stat().st_mtime, reverse=True):
            if _is_whole(other.read_bytes()):
                return f"resume from {other}, which is whole"
    return _KEPT
