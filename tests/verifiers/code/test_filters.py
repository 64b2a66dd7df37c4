"""The seccomp filter, interpreted: what each call is answered with, on both architectures; numbers by the headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from transformer2.verifiers.code import seccomp

ALLOW, KILL = "allow", "kill"


def answer(machine: str, number: int, *arguments: int, arch: int | None = None) -> str | int:
    """What the kernel would do: allow, kill, or the error number."""
    audit = seccomp.ARCHITECTURES[machine][0] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    code = seccomp.allow_filter(machine)
    program = [struct.unpack_from("=HBBI", code, i) for i in range(0, len(code), 8)]
    accumulator, i = 0, 0
    while True:
        op, if_true, if_false, value = program[i]
        i += 1
        match op:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                i += if_true if accumulator == value else if_false
            case 0x35:
                i += if_true if accumulator >= value else if_false
            case 0x45:
                i += if_true if accumulator & value else if_false
            case 0x06:
                if value == 0x7FFF0000:
                    return ALLOW
                return KILL if value == 0x80000000 else value & 0xFFFF
            case _:
                raise AssertionError(op)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_allowed_and_refused(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][1]
    allowed = {pair[column] for pair in seccomp.NUMBERS.values()} - {None}
    special = {
        pair[column] for pair in (seccomp._CLONE, seccomp._CLONE3, seccomp._FCNTL, seccomp._PRLIMIT, seccomp._IOCTL)
    }
    for number in range(600):
        if number in allowed:
            assert answer(machine, number) == ALLOW
        elif number not in special:
            assert answer(machine, number) == errno.EPERM
    clone = seccomp._CLONE[column]
    assert answer(machine, clone, 0x3D0F00) == ALLOW  # what pthread_create asks for
    assert answer(machine, clone, 17) == answer(machine, clone, 0x20000011) == errno.EPERM  # fork; a pid namespace
    assert answer(machine, seccomp._CLONE3[column]) == errno.ENOSYS
    assert answer(machine, seccomp._FCNTL[column], 3, 1030) == ALLOW
    assert answer(machine, seccomp._FCNTL[column], 3, 8) == errno.EPERM  # F_SETOWN
    assert answer(machine, seccomp._PRLIMIT[column], 0) == ALLOW
    assert answer(machine, seccomp._PRLIMIT[column], 4711) == errno.EPERM
    assert answer(machine, seccomp._IOCTL[column], 0) == errno.ENOTTY
    assert answer(machine, 0, arch=0x40000003) == KILL  # 32-bit


def test_x32_numbers_kill() -> None:
    assert answer("x86_64", 0x40000000 + 57) == answer("x86_64", 0x40000000) == KILL


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_are_the_kernels(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    text = Path(header).read_text()
    known = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    known.setdefault("newfstatat", known.get("fstatat", -1))
    special = {
        "clone": seccomp._CLONE,
        "clone3": seccomp._CLONE3,
        "fcntl": seccomp._FCNTL,
        "prlimit64": seccomp._PRLIMIT,
        "ioctl": seccomp._IOCTL,
    }
    for name, pair in {**seccomp.NUMBERS, **special}.items():
        if pair[column] is not None:
            assert known[name] == pair[column], name
