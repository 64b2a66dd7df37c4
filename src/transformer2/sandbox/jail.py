"""The isolation layers around one process, by ctypes alone: no container engine, no service, no dependency.

    separate   once, in the process that forks candidates: own network, ipc, host-name and mount namespaces, and a file
               system that holds nothing but the standard library (root, or a user namespace where that is allowed)
    confine    in every candidate and every checker, just before it reads what it is to run: new session, one
               descriptor, limits, no privileges, Landlock, seccomp

Neither decides whether what is missing is acceptable: each says what it could not do, and `judge.py` refuses.

Sources: namespaces(7), user_namespaces(7), pivot_root(2), prctl(2), capabilities(7), setrlimit(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from transformer2.sandbox import landlock, seccomp

__all__ = ["NAMESPACES", "Limits", "confine", "new_pid_namespace", "readable", "separate", "standard_library"]

# What may be missing; without any other layer, nothing that a model wrote is run.
NAMESPACES = ("pid", "net", "ipc", "uts", "mnt")

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_FIRST_USER, _USERS = 62000, 3500  # nobody's: as root, every judge's candidates are a user of their own
_CAPABILITY_VERSION_3 = 0x20080522

_LINUX = sys.platform.startswith("linux")
_PROCESS = os.getpid()  # the judge's or the zygote's, in all that they fork
_libc = ctypes.CDLL(None, use_errno=True)
if _LINUX:
    _libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


@dataclass(frozen=True)
class Limits:
    """What one process may use.

    Attributes:
        cpu_seconds: CPU time; SIGKILL at it (the first process of a pid namespace would not even see a SIGXCPU).
        memory: Bytes of address space.
        file_size: Bytes of one file.
        descriptors: Open descriptors.
        threads: Processes and threads of its user; None where the user is shared with others, whose threads would
            count. (Address space bounds threads as well, and seccomp allows no process.)
    """

    cpu_seconds: int = 2
    memory: int = 512 << 20
    file_size: int = 1 << 20
    descriptors: int = 32
    threads: int | None = 64


def standard_library() -> list[str]:
    """The folders of this interpreter's standard library."""
    paths = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return sorted(path for path in paths if os.path.isdir(path))


@cache
def readable() -> tuple[list[str], list[str]]:
    """What may be listed and what may be read: the standard library without the packages that lie inside of it."""
    folders = standard_library()
    entries = [entry for folder in folders for entry in os.scandir(folder)]
    return folders, [e.path for e in entries if e.name not in ("site-packages", "dist-packages")]


def separate() -> dict[str, str]:
    """Leave the machine's namespaces and keep only the standard library of its files.

    Returns:
        Namespace -> why it is missing; empty when all are there. The pid namespace is made per candidate
        (`new_pid_namespace`) and only tried here, in a child.
    """
    if not _LINUX:
        return dict.fromkeys(NAMESPACES, f"{sys.platform} has none")
    missing: dict[str, str] = {}
    flags = {"mnt": _NEWNS, "net": _NEWNET, "ipc": _NEWIPC, "uts": _NEWUTS}
    if _libc.unshare(_NEWNS) == 0:
        del flags["mnt"]  # privileged already: no user namespace is needed
    elif not _in_child(_enter_user_namespace):  # tried first: half-way in, there is no way back
        _enter_user_namespace()
        del flags["mnt"]
    for name, flag in flags.items():
        if _libc.unshare(flag):
            missing[name] = os.strerror(ctypes.get_errno())
    if "mnt" not in missing:
        try:
            _empty_root(standard_library())
        except OSError as e:
            missing["mnt"] = str(e)
    if _in_child(new_pid_namespace):
        missing["pid"] = "not permitted"
    return missing


def _enter_user_namespace() -> None:
    """A user namespace of this user alone, with a mount namespace in it.

    Raises:
        OSError: Not permitted, or permitted without the rights that belong to it, as some distributions do.
    """
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NEWUSER | _NEWNS), "user namespace")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def new_pid_namespace() -> None:
    """Let the next child of this process be the first process of a pid namespace, which ends with it.

    Raises:
        OSError: Not permitted.
    """
    _check(_libc.unshare(_NEWPID), "pid namespace")


def confine(keep: Iterable[int], limits: Limits) -> dict[str, str]:
    """Give up, for good, everything that computing does not need.

    Args:
        keep: Descriptors that stay open; standard input, output and error become /dev/null.
        limits: What the process may use from here on.

    Returns:
        Layer -> why it could not be put on; empty when all are. The layers after a failed one are still put on.
    """
    missing: dict[str, str] = {}

    def layer(name: str, put_on: Callable[[], object]) -> None:
        try:
            put_on()
        except (OSError, ValueError, AttributeError, KeyError) as e:
            missing[name] = str(e) or type(e).__name__

    if os.getsid(0) != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    layer("descriptors", lambda: _close_all_but(set(keep)))  # before their number is limited
    layer("rlimits", lambda: _limit(limits))
    layer("user", _become_unprivileged)
    if not _LINUX:
        return missing | dict.fromkeys(("seccomp", "landlock", "no_new_privs"), f"{sys.platform} has none")
    # After the change of user, which would undo them.
    layer("parent", lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    layer("dumpable", lambda: _prctl(_PR_SET_DUMPABLE, 0))
    layer("no_new_privs", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1))
    layer("landlock", lambda: landlock.restrict(_libc, *readable()))
    layer("capabilities", _drop_capabilities)
    layer("seccomp", lambda: seccomp.install(seccomp.allow_filter(platform.machine()), _libc.prctl))
    return missing


def _limit(limits: Limits) -> None:
    import resource  # not on every system that imports a task

    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_NOFILE, limits.descriptors),
        (resource.RLIMIT_NPROC, limits.threads),
    ):
        if value is None:
            continue
        ceiling = resource.getrlimit(kind)[1]
        lowest = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (lowest, lowest))


def _close_all_but(keep: set[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in {0, 1, 2} - keep:
        os.dup2(null, standard)
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _become_unprivileged() -> None:
    """As root: another user, who owns nothing and whose threads are those of one judge."""
    if os.geteuid() != 0:
        return
    user = _FIRST_USER + _PROCESS % _USERS
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _drop_capabilities() -> None:
    number = 0
    while _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def _empty_root(folders: list[str]) -> None:
    """A read-only root of nothing but these folders, /dev/null, and the way to them."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    root = "/tmp"  # any folder serves: in this namespace alone it is covered by the new root
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV)
    for folder in folders:
        os.makedirs(root + folder, mode=0o755, exist_ok=True)
        _mount(folder, root + folder, None, _MS_BIND)
        _mount(None, root + folder, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.makedirs(root + "/dev", mode=0o755)
    with open(root + os.devnull, "wb"):
        pass
    _mount(os.devnull, root + os.devnull, None, _MS_BIND)
    os.chdir(root)
    _check(_libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")
    _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    names = [None if name is None else os.fsencode(name) for name in (source, target, kind)]
    _check(_libc.mount(*names, ctypes.c_ulong(flags), None), f"mount {target}")


def _in_child(attempt: Callable[[], None]) -> int:
    """Exit status of a child that tries something: 0 when it works."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as f:
        f.write(text)


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
