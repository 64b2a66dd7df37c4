"""One warm judge: takes a program and its tests, gives back an outcome. A worker of `verifiers.pool.WarmPool`.

    judge ── zygote ── supervisor ── candidate       never sees a test
      └───── checker                                 runs the tests; asks the candidate over a socket

The judge itself runs nothing that it is given. It starts by trying its own walls (`selftest.py`): honest programs must
pass and attacks must fail, or it takes no work.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformer2.verifiers._serve import Channel, serve
from transformer2.verifiers.code.checker import check
from transformer2.verifiers.code.jail import NAMESPACES, Limits, confine, readable
from transformer2.verifiers.code.selftest import CONTROLS, PROBES, self_test
from transformer2.verifiers.code.values import Closed, receive
from transformer2.verifiers.code.zygote import preload

__all__ = ["SLACK", "Judge", "level_of", "main", "python_that_runs"]

PACKAGE = str(Path(__file__).resolve().parents[2])
BOOT = """\
import sys, importlib.util as util
folder = {package!r}
spec = util.spec_from_file_location("transformer2", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["transformer2"] = package = util.module_from_spec(spec)
spec.loader.exec_module(package)
from transformer2.verifiers.code.{module} import main
main({argument!r})
"""
CHECKER = Limits(cpu_seconds=6, memory=2 << 30, descriptors=16, threads=None)
SLACK = 4.0  # seconds that a checker may take beyond its candidate


class Judge:
    """Runs programs one at a time.

    Args:
        allow_unsafe: Take work although a required layer is missing.
    """

    def __init__(self, allow_unsafe: bool = False) -> None:
        self.allow_unsafe = allow_unsafe
        self.missing: dict[str, str] = {}
        preload()
        readable()  # listed once, for all checkers
        ours, theirs = socket.socketpair()
        command = python_that_runs("zygote", theirs.fileno(), "-S")
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._zygote = ours
        ready = json.loads(ours.makefile("rb").readline() or b'{"missing": {"zygote": "it did not start"}}')
        self.missing |= ready["missing"]

    def run(self, program: dict[str, Any]) -> dict[str, Any]:
        """Outcome, reason and missing layers of one program (fields of `Program`)."""
        if any("numpy" in source for source in (program["setup"], *program["tests"])):
            importlib.import_module("numpy.testing")  # MBPP+ compares with it; before the fork, while files can be read
        seconds = 3.0 * program["cpu_seconds"]  # of wall-clock time: cores are shared, and sleep costs no CPU time
        limits = asdict(Limits(cpu_seconds=program["cpu_seconds"]))
        ours, theirs = socket.socketpair()
        supervisor, its_end = socket.socketpair()
        reports, report = os.pipe()
        with ours, supervisor:
            supervisor.sendall(json.dumps({"limits": limits, "seconds": seconds}).encode())
            with theirs, its_end:
                socket.send_fds(self._zygote, [b"+"], [theirs.fileno(), its_end.fileno()])
            pid = os.fork()
            if pid == 0:
                try:
                    self._check(ours.fileno(), report, program)
                finally:
                    os._exit(0)
            os.close(report)
            result = _wait_for(pid, reports, seconds + SLACK)
            with contextlib.suppress(OSError):  # it has answered already, and is gone
                if result["outcome"] == "lost":
                    supervisor.sendall(b"?")
                supervisor.shutdown(socket.SHUT_WR)
            supervisor.settimeout(SLACK)
            try:
                end = json.loads(supervisor.recv(4096))
            except (OSError, ValueError):
                return {"outcome": "infra_error", "reason": "the program's supervisor is gone"}
        return _explained(result, end)

    def _check(self, channel: int, report: int, program: dict[str, Any]) -> None:
        judge = os.getppid()
        missing = confine([channel, report], CHECKER)
        if os.getppid() != judge:  # it died before this process asked to die with it
            return
        try:
            missing |= receive(channel)["layers"]
        except Closed:
            result: dict[str, Any] = {"outcome": "infra_error", "reason": "the candidate's process did not start"}
        else:
            if level_of(missing) == "unsafe" and not self.allow_unsafe:
                result = {"outcome": "infra_error", "reason": f"without {', '.join(missing)}"}
            else:
                fields = {key: program[key] for key in ("code", "names", "setup", "tests")}
                result = check(channel, **fields)
        os.write(report, json.dumps({**result, "missing": missing}).encode())

    def test(self) -> dict[str, Any]:
        """What this judge can do: level, missing layers, and the outcome of the self-test."""
        self.missing |= self.run(CONTROLS[0]).get("missing", {})
        level = level_of(self.missing)
        # Without walls nothing hostile is tried, and where nothing will be run, nothing is.
        failed = [] if level == "unsafe" and not self.allow_unsafe else self_test(self.run, level)
        if failed:
            level = "unsafe"
        return {
            "level": level,
            "missing": self.missing,
            "failed": failed,
            "refused": level == "unsafe" and not self.allow_unsafe,
            "controls": len(CONTROLS),
            "probes": len(PROBES),
        }


def python_that_runs(module: str, argument: object, *options: str) -> list[str]:
    """Command of a Python that runs `main(argument)` of a module beside this one.

    The package is found by its file: a folder of this machine that came before the standard library on the import path
    could replace any of its modules, in a process that has no walls around it.
    """
    code = BOOT.format(package=PACKAGE, module=module, argument=argument)
    return [sys.executable, "-P", "-s", *options, "-c", code]


def level_of(missing: Iterable[str]) -> str:
    """`full`, `no-namespaces` (one or more of them are missing) or `unsafe` (anything else is missing)."""
    if set(missing) - set(NAMESPACES):
        return "unsafe"
    return "no-namespaces" if set(missing) else "full"


def _wait_for(pid: int, reports: int, seconds: float) -> dict[str, Any]:
    """The checker's report; the checker is gone afterwards."""
    end, text = time.monotonic() + seconds, b""
    while select.select([reports], [], [], max(0.0, end - time.monotonic()))[0]:
        if not (part := os.read(reports, 1 << 16)):
            break
        text += part
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(reports)
    status = os.waitpid(pid, 0)[1]
    if text:
        return dict(json.loads(text))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return {"outcome": "timeout", "reason": "checking the answer took too long"}
    return {"outcome": "infra_error", "reason": f"the checker ended with status {status}"}


def _explained(result: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    """A program that was lost on the way, by what ended it.

    A SIGKILL that is not the supervisor's is taken for the CPU limit's. (On a busy machine the kernel's clock of the
    limit and that of the usage it reports differ, so the usage cannot tell; and a program must not be able to have
    itself killed into an infra error.)
    """
    if result["outcome"] != "lost":
        return result
    died = end["signal"] and not end["stopped"]
    if end["timeout"] or (died and end["signal"] == signal.SIGKILL):
        return {**result, "outcome": "timeout", "reason": "out of time"}
    how = f"killed by signal {end['signal']} ({signal.strsignal(end['signal'])})" if died else "it ended itself"
    return {**result, "outcome": "crashed", "reason": how}


def _plain(reason: str) -> str:
    """A reason fit for a log: a candidate may have had a hand in it."""
    return "".join(c if c.isprintable() else "?" for c in reason[:200])


def main(allow_unsafe: bool = False) -> None:
    """Test the walls, then judge until the owner is gone; an empty request asks what the test found."""
    channel = Channel()
    judge = Judge(allow_unsafe)
    found = judge.test()

    def handle(request: bytes) -> bytes:
        if not request:
            return json.dumps(found).encode()
        if found["refused"]:
            return json.dumps({"outcome": "infra_error", "reason": "the sandbox refuses to run"}).encode()
        result = judge.run(json.loads(request))
        return json.dumps({"outcome": result["outcome"], "reason": _plain(result["reason"])}).encode()

    serve(handle, channel=channel)
