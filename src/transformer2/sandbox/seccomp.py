"""The system calls that a candidate program may make, as a seccomp filter in classic BPF. Everything else is refused.

An allow list: what a pure Python program needs to compute, to read the standard library, to start threads and to wait.
No fork or exec, no sockets, no signals to others, nothing that creates, changes or removes a file, no ptrace, mount,
bpf, io_uring, memfd, keys or timers that signal others. A refused call returns EPERM, so honest code continues; a call
of a foreign architecture (32-bit or x32 numbers mean other calls) kills the process.

asyncio's event loop waits on an epoll set and wakes itself through a pair of connected unix stream sockets: a pipe
within the process. Only that pair can be made. Nothing names another socket: no socket, bind, connect or accept, no
address in sendto, and no sendmsg or recvmsg, which pass descriptors. No flags either: MSG_OOB has been a way into the
kernel (CVE-2025-38236).

Sources: seccomp(2), linux/seccomp.h, linux/filter.h; numbers from asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping, Sequence

__all__ = ["ARCHITECTURES", "NUMBERS", "allow_filter", "install"]

# machine -> (AUDIT_ARCH_* of linux/audit.h, column of NUMBERS)
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Name, number on x86_64, number on aarch64; -: that architecture has no such call.
_TABLE = """
# memory and descriptors that are already open
read 0 63                   write 1 64                  close 3 57                  fstat 5 80
lseek 8 62                  mmap 9 222                  mprotect 10 226             munmap 11 215
brk 12 214                  mremap 25 216               madvise 28 233              pread64 17 67
readv 19 65                 writev 20 66                dup 32 23                   dup2 33 -
dup3 292 24                 poll 7 -                    ppoll 271 73                select 23 -
pselect6 270 72             epoll_create1 291 20        epoll_ctl 233 21            epoll_wait 232 -
epoll_pwait 281 22          getsockname 51 204
# files by name: Landlock says which
open 2 -                    openat 257 56               stat 4 -                    lstat 6 -
newfstatat 262 79           statx 332 291               access 21 -                 faccessat 269 48
faccessat2 439 439          readlink 89 -               readlinkat 267 78           getdents64 217 61
getcwd 79 17
# signals of this process, time, randomness
rt_sigaction 13 134         rt_sigprocmask 14 135       rt_sigreturn 15 139         sigaltstack 131 132
restart_syscall 219 128     setitimer 38 103            getitimer 36 102            alarm 37 -
nanosleep 35 101            clock_nanosleep 230 115     clock_gettime 228 113       clock_getres 229 114
gettimeofday 96 169         time 201 -                  times 100 153               getrandom 318 278
# who and where am I
getpid 39 172               getppid 110 173             gettid 186 178              getuid 102 174
geteuid 107 175             getgid 104 176              getegid 108 177             getresuid 118 148
getresgid 120 150           getgroups 115 158           getrusage 98 165            getrlimit 97 163
sysinfo 99 179              uname 63 160
# threads and the end
sched_yield 24 124          sched_getaffinity 204 123   futex 202 98                set_robust_list 273 99
rseq 334 293                membarrier 324 283          exit 60 93                  exit_group 231 94
"""
_WORDS = [word for line in _TABLE.splitlines() if not line.startswith("#") for word in line.split()]
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    name: (None if x86_64 == "-" else int(x86_64), None if aarch64 == "-" else int(aarch64))
    for name, x86_64, aarch64 in zip(_WORDS[::3], _WORDS[1::3], _WORDS[2::3], strict=True)
}
# Allowed or answered by their arguments below.
_CLONE, _CLONE3 = (56, 220), (435, 435)
_FCNTL, _PRLIMIT, _IOCTL = (72, 25), (302, 261), (16, 29)
_SOCKETPAIR, _SENDTO, _RECVFROM = (53, 199), (44, 206), (45, 207)

_CLONE_THREAD = 0x00010000
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: F_SETOWN would let a file signal another process.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
_FIONBIO = 0x5421  # what F_SETFL can do as well
_AF_UNIX, _SOCK_STREAM, _SOCK_NONBLOCK, _SOCK_CLOEXEC = 1, 1, 0x800, 0x80000

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes, low word first
_X32 = 0x40000000


def allow_filter(machine: str) -> bytes:
    """The filter's instructions (struct sock_filter, 8 bytes each) for `x86_64` or `aarch64`.

    Raises:
        KeyError: Another machine.
    """
    audit, column = ARCHITECTURES[machine]
    program = [_op(_LOAD, _ARCH), _op(_JUMP_IF_EQUAL, audit, 1, 0), _return(_KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        program += [_op(_JUMP_IF_AT_LEAST, _X32, 0, 1), _return(_KILL)]
    for pair in NUMBERS.values():
        if (number := pair[column]) is not None:
            program += _when(number, [_return(_ALLOW)])
    refused = [_return(_ERRNO | errno.EPERM)]
    program += _when(
        _CLONE[column], [_op(_LOAD, _low(0)), _op(_JUMP_IF_SET, _CLONE_THREAD, 0, 1), _return(_ALLOW), *refused]
    )
    # glibc falls back to clone, whose flags can be read here, when clone3 does not exist.
    program += _when(_CLONE3[column], [_return(_ERRNO | errno.ENOSYS)])
    program += _when(_FCNTL[column], _only({_low(1): _FCNTL_COMMANDS}))
    # Limits of this process (pid 0) only.
    program += _when(_PRLIMIT[column], _only({_low(0): (0,)}))
    program += _when(_IOCTL[column], _only({_low(1): (_FIONBIO,)}, errno.ENOTTY))
    stream = [_SOCK_STREAM | flags for flags in (0, _SOCK_NONBLOCK, _SOCK_CLOEXEC, _SOCK_NONBLOCK | _SOCK_CLOEXEC)]
    program += _when(_SOCKETPAIR[column], _only({_low(0): (_AF_UNIX,), _low(1): stream, _low(2): (0,)}))
    program += _when(_SENDTO[column], _only({_low(3): (0,), _low(4): (0,), _low(4) + 4: (0,)}))  # NULL for the address
    program += _when(_RECVFROM[column], _only({_low(3): (0,)}))
    return b"".join([*program, *refused])


def install(filter_: bytes, prctl: ctypes._CFuncPtr) -> None:  # type: ignore[name-defined]  # ctypes exports no name
    """Put the filter on this thread and all that it starts; needs no_new_privs or CAP_SYS_ADMIN.

    Raises:
        OSError: The kernel has no seccomp filters, or refuses this one.
    """
    code = ctypes.create_string_buffer(filter_, len(filter_))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(filter_) // 8, ctypes.addressof(code)))
    if prctl(22, 2, ctypes.addressof(program), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp filters")


def _when(number: int, then: list[bytes]) -> list[bytes]:
    """`then` (which ends in a return on every path) for this call, else on to what follows."""
    return [_op(_JUMP_IF_EQUAL, number, 0, len(then)), *then]


def _only(allowed: Mapping[int, Sequence[int]], error: int = errno.EPERM) -> list[bytes]:
    """Allow a call where each word (by its offset in struct seccomp_data) has one of its values, else refuse it."""
    program: list[bytes] = []
    for offset, values in allowed.items():
        program.append(_op(_LOAD, offset))
        # Any of the values jumps over what refuses.
        program += [_op(_JUMP_IF_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
        program.append(_return(_ERRNO | error))
    return [*program, _return(_ALLOW)]


def _low(argument: int) -> int:
    """Offset of the low word of an argument; the high word follows it."""
    return _FIRST_ARGUMENT + 8 * argument


def _return(action: int) -> bytes:
    return _op(_RETURN, action)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
