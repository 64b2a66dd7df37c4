"""An outer jail for hostile tests: `python outer_jail.py SCRIPT [ARGUMENTS]` runs a script where it can harm nothing.

Its own mount, pid, network, ipc and host-name namespaces; a root of read-only mounts; one writable folder, /tmp, a
memory file system of its own; the user nobody (or, without root, a user namespace); no capabilities. So an attack that
gets through the sandbox under test still finds nothing to break, and everything that it leaves is in /tmp or /proc.
"""

import ctypes
import os
import sys
import tempfile
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
NOBODY = 65534


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    names = [None if n is None else os.fsencode(n) for n in (source, target, kind)]
    if libc.mount(*names, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def build_root(root: str, readable: list[str]) -> None:
    mount(None, "/", None, REC | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID)
    os.chmod(root, 0o755)
    os.makedirs(f"{root}/tmp")
    mount("tmpfs", f"{root}/tmp", "tmpfs", NOSUID | NODEV)
    os.chmod(f"{root}/tmp", 0o1777)  # before what is read-only below it: a virtual environment may lie there
    for path in readable:
        inside = root + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
            continue
        os.makedirs(inside, mode=0o755, exist_ok=True)
        mount(path, inside, None, BIND)
        mount(None, inside, None, REMOUNT | BIND | RDONLY | NOSUID)
    for name in ("null", "zero", "urandom"):
        os.makedirs(f"{root}/dev", exist_ok=True)
        Path(f"{root}/dev/{name}").touch()
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, BIND)
    os.makedirs(f"{root}/proc")
    mount("proc", f"{root}/proc", "proc", NOSUID)
    os.chdir(root)
    if libc.syscall({"x86_64": 155, "aarch64": 41}[os.uname().machine], b".", b".") or libc.umount2(b".", 2):
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir("/")


def main() -> int:
    root = tempfile.mkdtemp()
    pid = os.fork()
    if pid == 0:
        os._exit(enter(root))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.rmdir(root)
    return status


def enter(root: str) -> int:
    script, arguments = str(Path(sys.argv[1]).resolve()), sys.argv[2:]
    checkout = str(Path(__file__).resolve().parents[2])
    system = [p for p in ("/usr", "/lib", "/lib64", "/bin", "/etc") if os.path.exists(p)]
    readable = [*system, *dict.fromkeys([sys.base_prefix, sys.prefix, checkout])]
    readable = [p for p in readable if not any(p != q and p.startswith(q + "/") for q in readable)]
    uid, gid = os.getuid(), os.getgid()
    flags = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    if libc.unshare(flags if uid == 0 else NEWUSER | flags):
        print("NO OUTER JAIL: this system gives no namespaces, so hostile programs are not run", file=sys.stderr)
        return 77
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    # The first process of the pid namespace: when it ends, everything in it does.
    if (first := os.fork()) == 0:
        build_root(root, readable)
        if uid == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        libc.prctl(38, 1, 0, 0, 0)  # no new privileges
        if (worker := os.fork()) == 0:
            os.execv(sys.executable, [sys.executable, script, *arguments])
        while True:  # orphans come here to be buried
            ended, status = os.wait()
            if ended == worker:
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
