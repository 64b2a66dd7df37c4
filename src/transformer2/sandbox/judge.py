"""One warm judge: takes a program and its tests, gives back an outcome. A worker of `pool.WorkerPool`.

    judge ── zygote ── supervisor ── candidate       never sees a test
      └───── checker                                 runs the tests; asks the candidate over a socket

The judge itself runs nothing that it is given. It starts by testing its own isolation (`selftest.py`): honest programs
must pass and attacks must fail, or it takes no work.
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
import time
from collections.abc import Iterable
from typing import Any

from transformer2.sandbox.checker import check
from transformer2.sandbox.jail import NAMESPACES, Limits, confine, readable
from transformer2.sandbox.pool import serve
from transformer2.sandbox.program import SLACK, Outcome, Program
from transformer2.sandbox.python import isolated_python
from transformer2.sandbox.selftest import CONTROLS, PROBES, self_test
from transformer2.sandbox.values import Closed, receive
from transformer2.sandbox.zygote import preload

__all__ = ["Judge", "level_of", "main"]

CHECKER = Limits(cpu_seconds=6, memory=2 << 30, descriptors=16, threads=None)


class Judge:
    """Runs programs one at a time.

    Args:
        allow_unsafe: Take work although a required layer is missing.

    Attributes:
        missing: Layer -> why the zygote or a program had to do without it.
    """

    def __init__(self, allow_unsafe: bool = False) -> None:
        self.allow_unsafe = allow_unsafe
        preload()
        readable()  # listed once, for all checkers
        self._zygote, theirs = socket.socketpair()
        command = isolated_python("zygote", theirs.fileno(), "-S")
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        ready = self._zygote.makefile("rb").readline() or b'{"zygote": "it did not start"}'
        self.missing: dict[str, str] = json.loads(ready)

    def run(self, program: Program) -> Outcome:
        """What became of a program."""
        if any("numpy" in source for source in (program.setup, *program.tests)):
            importlib.import_module("numpy.testing")  # MBPP+ compares with it; before the fork, while files can be read
        ours, theirs = socket.socketpair()
        supervisor, its_end = socket.socketpair()
        with ours, supervisor:
            asked = {"cpu_seconds": program.cpu_seconds, "seconds": program.seconds}
            supervisor.sendall(json.dumps(asked).encode())
            with theirs, its_end:
                socket.send_fds(self._zygote, [b"+"], [theirs.fileno(), its_end.fileno()])
            outcome = self._checked(ours.fileno(), program)
            with contextlib.suppress(OSError):  # it has answered already, and is gone
                if outcome.outcome == "lost":
                    supervisor.sendall(b"?")
                supervisor.shutdown(socket.SHUT_WR)
            supervisor.settimeout(SLACK)
            try:
                end = json.loads(supervisor.recv(4096))
            except (OSError, ValueError):
                return Outcome("infra_error", "the program's supervisor is gone")
        if outcome.outcome == "lost":
            outcome = _what_ended(end)
        return Outcome(outcome.outcome, "".join(c if c.isprintable() else "?" for c in outcome.reason[:200]))

    def _checked(self, channel: int, program: Program) -> Outcome:
        """What a checker says, in a process of its own that is gone afterwards."""
        judge = os.getpid()
        reports, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                missing = confine([channel, report], CHECKER)
                if os.getppid() == judge:  # else it died before this process asked to die with it
                    os.write(report, json.dumps(self._check(channel, program, missing)).encode())
            finally:
                os._exit(0)
        os.close(report)
        end, text = time.monotonic() + program.seconds + SLACK, b""
        while select.select([reports], [], [], max(0.0, end - time.monotonic()))[0]:
            if not (part := os.read(reports, 1 << 16)):
                break
            text += part
        else:
            os.kill(pid, signal.SIGKILL)
        os.close(reports)
        status = os.waitpid(pid, 0)[1]
        if text:
            outcome, reason, missing = json.loads(text)
            self.missing |= missing
            return Outcome(outcome, reason)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return Outcome("timeout", "checking the answer took too long")
        return Outcome("infra_error", f"the checker ended with status {status}")

    def _check(self, channel: int, program: Program, missing: dict[str, str]) -> tuple[str, str, dict[str, str]]:
        """Outcome, reason, and the layers that the two processes lack."""
        try:
            missing |= receive(channel)["layers"]
        except Closed:
            return "infra_error", "the candidate's process did not start", missing
        if level_of(missing) == "unsafe" and not self.allow_unsafe:
            return "infra_error", f"without {', '.join(missing)}", missing
        found = check(channel, program)
        return found.outcome, found.reason, missing

    def test(self) -> dict[str, Any]:
        """What this judge can do: level, missing layers, and the outcome of the self-test."""
        self.run(CONTROLS[0])
        level = level_of(self.missing)
        # Without isolation nothing hostile is tried, and where nothing will be run, nothing is.
        failed = [] if level == "unsafe" and not self.allow_unsafe else self_test(self.run, level)
        level = "unsafe" if failed else level
        return {
            "level": level,
            "missing": self.missing,
            "failed": failed,
            "refused": level == "unsafe" and not self.allow_unsafe,
            "controls": len(CONTROLS),
            "probes": len(PROBES),
        }


def level_of(missing: Iterable[str]) -> str:
    """`full`, `no-namespaces` (one or more of them are missing) or `unsafe` (anything else is missing)."""
    if set(missing) - set(NAMESPACES):
        return "unsafe"
    return "no-namespaces" if set(missing) else "full"


def _what_ended(end: dict[str, Any]) -> Outcome:
    """What ended a program that was lost on the way.

    A SIGKILL that is not the supervisor's is attributed to the CPU limit. (On a busy machine the kernel's clock of the
    limit and that of the usage it reports differ, so the usage cannot tell; and a program must not be able to have
    itself killed into an infra error.)
    """
    died = end["signal"] and not end["stopped"]
    if end["timeout"] or (died and end["signal"] == signal.SIGKILL):
        return Outcome("timeout", "out of time")
    how = f"killed by signal {end['signal']} ({signal.strsignal(end['signal'])})" if died else "it ended itself"
    return Outcome("crashed", how)


def main(allow_unsafe: bool) -> None:
    """Test the isolation, then judge until the owner is gone; an empty request asks what the test found."""
    judge = Judge(allow_unsafe)
    found = judge.test()

    def handle(request: bytes) -> bytes:
        if not request:
            return json.dumps(found).encode()
        if found["refused"]:
            return json.dumps(["infra_error", "the sandbox refuses to run"]).encode()
        outcome = judge.run(Program(**json.loads(request)))
        return json.dumps([outcome.outcome, outcome.reason]).encode()

    serve(handle)
