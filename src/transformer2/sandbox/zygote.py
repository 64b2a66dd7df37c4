"""Forks one candidate after the other from a process that holds no secrets.

Started before anything of torch or CUDA, with an empty environment and the whole standard library already imported, so
that a candidate costs a fork and imports work where no file can be read. It is handed descriptors only: neither code
nor tests pass through it, so no candidate finds another one's in its memory.

    zygote ── supervisor ── candidate          (one pair per program; the candidate is pid 1 of its namespace)
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import warnings

from transformer2.sandbox import candidate
from transformer2.sandbox.jail import Limits, confine, new_pid_namespace, readable, separate, standard_library

__all__ = ["main", "preload"]

# Modules that do something when imported, need a screen, or are for building Python itself.
_SKIPPED = {"antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "lib2to3", "ensurepip", "test", "venv"}
# Packages of which every module is imported too; of the others, what they import by themselves.
_WHOLE = (
    "asyncio", "collections", "concurrent", "ctypes", "email", "encodings", "html", "http", "importlib", "json",
    "logging", "unittest", "urllib", "xml", "zoneinfo",
)  # fmt: skip


def preload() -> None:
    """Import the standard library, as far as it goes without side effects."""
    names = {m.name for folder in standard_library() for m in pkgutil.iter_modules([folder])} | sys.stdlib_module_names
    wanted = [name for name in sorted(names) if not name.startswith("_") and name not in _SKIPPED]
    for folder in standard_library():
        for package in _WHOLE:
            found = pkgutil.walk_packages([os.path.join(folder, package)], f"{package}.", onerror=lambda _: None)
            wanted += [m.name for m in found if not m.name.rpartition(".")[2].startswith("__")]
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        for name in wanted:
            with contextlib.suppress(Exception, SystemExit):  # modules of other systems, or with a library missing
                importlib.import_module(name)


def main(control: int) -> None:
    """Fork a supervised candidate for every pair of descriptors that comes, until the judge is gone."""
    judge = socket.socket(fileno=control)
    # The library's only: what an installation adds (site-packages of the machine) is not a candidate's business.
    folders = [p for folder in standard_library() for p in (folder, os.path.join(folder, "lib-dynload"))]
    sys.path[:] = folders
    preload()
    readable()  # listed once, while it can be
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as f:
        f.write("1000")  # when memory runs out, the kernel is to take a candidate and not the trainer
    missing = separate()
    # Without a user of their own, the limit on threads would count the trainer's.
    shared_user = os.geteuid() != 0 and "mnt" in missing
    judge.sendall(json.dumps(missing).encode() + b"\n")
    gc.collect()
    gc.freeze()  # or every collection in a candidate would copy these pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors leave no zombies
    while True:
        _, fds, _, _ = socket.recv_fds(judge, 1, 2)
        if not fds:
            return
        if os.fork() == 0:
            judge.close()
            _supervise(fds[0], fds[1], own_pids="pid" not in missing, shared_user=shared_user)
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _supervise(channel: int, control: int, own_pids: bool, shared_user: bool) -> None:
    """Fork the candidate, kill it at its deadline or when the judge has seen enough, and say how it ended."""
    judge = socket.socket(fileno=control)
    asked = json.loads(judge.recv(4096))
    limits = Limits(asked["cpu_seconds"], threads=None if shared_user else Limits.threads)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    if own_pids:
        new_pid_namespace()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            candidate.serve(channel, confine([channel], limits))
        finally:
            os._exit(0)
    os.close(channel)
    waiting, _, _ = select.select([ended, control], [], [], asked["seconds"])
    if control in waiting and ended not in waiting and judge.recv(1):
        # The checker lost it: its descriptors were closed, and how it ends will be known in a moment.
        waiting += select.select([ended], [], [], 0.2)[0]
    if ended not in waiting:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    answer = {
        "timeout": not waiting,
        "stopped": ended not in waiting,  # by us
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
    }
    with contextlib.suppress(OSError):
        judge.sendall(json.dumps(answer).encode())
