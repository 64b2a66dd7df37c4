"""Read what a stranger left on disk: a regular file of bounded size, and nothing that makes a reader wait."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from transformer2.errors import UserError, shown


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
        raise error(f"{name} is missing; copy the whole folder") from None
    except (OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise error(f"{name} cannot be read ({getattr(e, 'strerror', None) or e}); check its permissions") from e
    if status.st_size > limit or len(data) > limit:
        raise error(f"{name} has more than {limit} bytes, which no file of this kind has; check where it came from")
    return data


def fsync(path: Path) -> None:
    """Put a file, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
