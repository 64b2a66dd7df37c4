"""Landlock: from here on this process may read below some folders and touch nothing else, ever.

Sources: landlock(7), linux/landlock.h. Rights that the running kernel does not know yet (its ABI is older) are not
asked for: those calls (truncate, device ioctls, TCP, signals) are refused by the seccomp filter in any case.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

__all__ = ["restrict"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # ABI -> number of file-system rights; 16 from ABI 5 on
_NET, _SCOPE = 0b11, 0b11  # bind and connect TCP (ABI 4); abstract sockets and signals (ABI 6)


def restrict(libc: ctypes.CDLL, listed: Sequence[str], readable: Sequence[str]) -> None:
    """Allow listing `listed` and below, reading `readable` and below, and /dev/null; nothing else. Needs no_new_privs.

    Raises:
        OSError: The kernel has no Landlock, or refuses.
    """
    version = _call(libc, _CREATE_RULESET, None, 0, 1)
    handled = (1 << _FS_BITS.get(version, 16)) - 1
    attributes = struct.pack("=QQQ", handled, _NET if version >= 4 else 0, _SCOPE if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(libc, _CREATE_RULESET, ctypes.create_string_buffer(attributes[:size], size), size, 0)
    try:
        for path in listed:
            _allow(libc, ruleset, path, _READ_DIR)
        for path in readable:
            _allow(libc, ruleset, path, _READ_FILE)
        _allow(libc, ruleset, os.devnull, _READ_FILE | _WRITE_FILE)
        _call(libc, _RESTRICT_SELF, ruleset, 0, 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # a folder that is not there, or that this user cannot reach, needs no rule
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, beneath))
        _call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(beneath)


def _call(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock")
    return result
