"""The seccomp filter, interpreted: what each call is answered with, on both architectures; numbers by the headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from transformer2.sandbox import seccomp

ALLOW, KILL = "allow", "kill"
SPECIAL = {
    "clone": seccomp._CLONE,
    "clone3": seccomp._CLONE3,
    "fcntl": seccomp._FCNTL,
    "prlimit64": seccomp._PRLIMIT,
    "ioctl": seccomp._IOCTL,
    "socketpair": seccomp._SOCKETPAIR,
    "sendto": seccomp._SENDTO,
    "recvfrom": seccomp._RECVFROM,
}


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
    special = {pair[column] for pair in SPECIAL.values()}
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


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_pair_of_sockets_leads_nowhere_else(machine: str) -> None:
    """What an event loop needs, argument by argument; everything else about sockets is refused."""
    column = seccomp.ARCHITECTURES[machine][1]
    pair, send, receive, ioctl = (SPECIAL[n][column] for n in ("socketpair", "sendto", "recvfrom", "ioctl"))
    for flags in (0, 0x800, 0x80000, 0x80800):
        assert answer(machine, pair, 1, 1 | flags, 0) == ALLOW
    for domain, kind, protocol in ((2, 1, 0), (10, 1, 0), (30, 1, 0), (1, 2, 0), (1, 5, 0), (1, 3, 0), (1, 1, 1)):
        assert answer(machine, pair, domain, kind, protocol) == errno.EPERM
    assert answer(machine, pair, 1, 1 | 0x40, 0) == errno.EPERM
    assert answer(machine, send, 5, 0x1000, 1, 0, 0, 0) == ALLOW
    for flags, address in ((0, 0x1000), (0, 1 << 32), (0, 0xFFFF_0000_0000), (1, 0), (0x4000, 0)):
        assert answer(machine, send, 5, 0x1000, 1, flags, address, 16) == errno.EPERM
    assert answer(machine, receive, 5, 0x1000, 1, 0) == ALLOW
    assert answer(machine, receive, 5, 0x1000, 1, 1) == errno.EPERM  # MSG_OOB
    assert answer(machine, ioctl, 5, 0x5421) == ALLOW  # FIONBIO
    for request in (0x5412, 0x5401, 0x8901, 0x8912, 0x5452):
        assert answer(machine, ioctl, 5, request) == errno.ENOTTY


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
    for name, pair in {**seccomp.NUMBERS, **SPECIAL}.items():
        if pair[column] is not None:
            assert known[name] == pair[column], name
