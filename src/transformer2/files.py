"""Files: those of others are read only if they are regular and of bounded size; ours are written whole or not."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformer2.errors import UserError, shown

MANIFEST = "manifest.sha256"
LAST = Path("checkpoints/last.ckpt")  # of a run folder, and the one before it
PREVIOUS = LAST.with_name("previous.ckpt")


def cache_root() -> Path:
    """Where files are kept that can be made again: `$TRANSFORMER2_CACHE`, or `~/.cache/transformer2`."""
    return Path(os.environ.get("TRANSFORMER2_CACHE") or "~/.cache/transformer2").expanduser()


def read_file(path: str | Path, limit: int, error: type[UserError] = UserError) -> bytes:
    """The content of a regular file. FIFOs, devices, sockets and folders are refused: reading them may never end.

    Args:
        path: The file; links are followed.
        limit: The most bytes it may have.
        error: What to raise.

    Raises:
        UserError: Of the type `error`: missing, unreadable, not a regular file, or too large.
    """
    name = shown(str(path))
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{name} is not a regular file; copy the file itself there")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(status.st_size + 1) if status.st_size <= limit else b""
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise error(f"{name} is missing; check the path, or copy the whole folder again") from None
    except (OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise error(f"{name} cannot be read ({getattr(e, 'strerror', None) or e}); check its permissions") from e
    if status.st_size > limit or len(data) > limit:
        raise error(f"{name} has more than {limit} bytes, which no file of this kind has; check where it came from")
    return data


def once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are there once (an `object_pairs_hook`).

    Raises:
        ValueError: One is there twice: the last would have been read, and the other ignored.
    """
    if len(found := dict(pairs)) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(repr(twice), 60)} is there twice")
    return found


def file_digest(path: str | Path, samples: bool = False) -> str | None:
    """SHA-256 of a file; None where there is none, or none that can be read.

    Args:
        path: The file.
        samples: Of one above 64 MB, take size and 64 spread samples of 64 kB for the whole. They cannot see a single
            changed weight; a training step of all weights they do.
    """
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return _digest(str(path), status.st_mtime_ns, status.st_size, samples)
    except (OSError, ValueError):
        pass
    return None


def source_digest(cls: type) -> str | None:
    """SHA-256 of the module that defines a class of the user's, and of those beside it that it imports.

    None for a class of this package, and for one without a file.
    """
    if cls.__module__.startswith("transformer2."):
        return None
    with contextlib.suppress(TypeError, OSError):
        own = inspect.getsourcefile(cls) or ""
        first = file_digest(own)
        others = sorted(digest for file in _imported(cls.__module__, own) if (digest := file_digest(file)) is not None)
        if first is None or not others:
            return first
        return hashlib.sha256("\n".join([first, *others]).encode()).hexdigest()
    return None


def _imported(name: str, file: str) -> set[str]:
    """Files of the modules of the same package, or of the same folder where there is none, that a module uses."""
    package, folder = name.partition(".")[0], os.path.dirname(file)
    found, left = {file}, [name] if name in sys.modules else []
    while left:
        for value in list(vars(sys.modules[module := left.pop()]).values()):
            used = value if inspect.ismodule(value) else sys.modules.get(str(getattr(value, "__module__", "")))
            # A package holds whatever is imported of it, whoever did so, by and by.
            if used is None or (value is used and used.__name__.startswith(f"{module}.")):
                continue
            path = str(getattr(used, "__file__", None) or "")
            beside = os.path.dirname(path) == folder if package == name else used.__name__.startswith(f"{package}.")
            if beside and path.endswith(".py") and path not in found:
                found.add(path)
                left.append(used.__name__)
    return found - {file}


@cache
def _digest(path: str, mtime: int, size: int, samples: bool) -> str:
    count, part = 64, 2**16
    with open(path, "rb") as file:
        if size <= 2**26 or not samples:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for i in range(count):
            file.seek(i * (size - part) // (count - 1))
            digest.update(file.read(part))
        return digest.hexdigest()


def check_directory(path: str | Path, name: str, remedy: str, error: type[UserError] = UserError) -> None:
    """Refuse what is not a directory as soon as it is named, not after a model has been loaded.

    Args:
        path: As the user gave it; `~` is their home.
        name: The key or flag that it was given by.
        remedy: What to do instead.
        error: What to raise.

    Raises:
        UserError: Of the type `error`.
    """
    expanded = os.path.expanduser(path)
    if not os.path.isdir(expanded):  # unlike Path.is_dir, it takes a name that is too long for a file system
        what = "is not a directory" if os.path.lexists(expanded) else "does not exist"
        raise error(f"{name} {shown(repr(str(path)))} {what}; {remedy}")


def inside(root: str | Path, path: str) -> Path | None:
    """Where an untrusted path in a folder really leads; None where that is outside of it, or where it is no path."""
    try:
        folder, found = Path(root).resolve(), (Path(root) / path).resolve()
    except (OSError, ValueError, RuntimeError):  # a null byte, a cycle of links
        return None
    return found if found.is_relative_to(folder) else None


def manifest(folder: Path, names: Iterable[str], error: type[UserError] = UserError) -> str:
    """The content of a folder's MANIFEST: the SHA-256 of these files, as `sha256sum -c` reads it."""
    hashes = {name: hashlib.sha256(read_file(folder / name, 2**62, error)).hexdigest() for name in names}
    return "".join(f"{found}  {name}\n" for name, found in hashes.items())


def write_file(
    path: Path, data: bytes, temporary: Path | None = None, check: Callable[[bytes], object] | None = None
) -> None:
    """Put data in the place of a file, which stays as it is until data is on the disk.

    Args:
        path: The file; may exist.
        data: Its new content.
        temporary: Where it is written first, on the same disk; None means a name next to it, of this thread alone.
        check: Raises where what came back from the disk is not good enough to replace the old file.

    Raises:
        OSError: It cannot be written; the old file is intact.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary.read_bytes())
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_file` of a text: a reader sees the old one or the new one."""
    write_file(path, text.encode())


def fsync(path: Path) -> None:
    """Put a file, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(fresh: Path, target: Path) -> None:
    """Put a finished folder in the place of another one, which is kept until then.

    A kill in the moment between the two renames leaves nothing at the target: read it with `whole_folder`.

    Args:
        fresh: The new folder, on the same disk.
        target: Where it goes; may exist.

    Raises:
        OSError: The folder cannot be moved; the old one is in its place.
    """
    for file in [*fresh.iterdir(), fresh]:
        fsync(file)
    old = _replaced(target)
    moved = os.path.lexists(target)
    if moved:
        _remove(old)
        os.replace(target, old)
    try:
        os.replace(fresh, target)
    except OSError:
        if moved:
            os.replace(old, target)
        raise
    fsync(target.parent)
    _remove(old)


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A new folder inside, which is put in the place of `target` at the end; after an error nothing is left of it.

    Raises:
        OSError: It cannot be made or moved; `target` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True)
    with beside as temp:
        fresh = Path(temp) / target.name
        fresh.mkdir()
        yield fresh
        replace_folder(fresh, target)


def whole_folder(target: Path) -> Path:
    """Where to read a folder that `replace_folder` writes: there, or next to it where a replacement was cut off."""
    old = _replaced(target)
    return old if os.path.isdir(old) and not os.path.lexists(target) else target


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"  # `.` and `/` have no name


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)
