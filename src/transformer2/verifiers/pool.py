"""Warm worker processes that can be killed: requests in, answers in order out, and no request holds its caller up.

    pool = WarmPool([sys.executable, "-m", "my_worker"])     # the worker calls `_serve.serve(handle)`
    answers = pool.map([b"...", b"..."], seconds=2.0)

Verifiers run what cannot be trusted to end. A thread cannot be stopped, and a signal is not seen by C code that holds
the GIL; so what runs over its time is killed as a process group, and the parent only ever waits in poll, with the GIL
free.

A worker's group does not outlive its owner, whatever it is doing: the kernel kills it when the last copy of a pipe that
only the owner holds is closed (see `_kill_on_hangup`). The parent-death signal of prctl does the same for one process
only, and fires when the starting *thread* ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum

from transformer2.verifiers._serve import HEADER

__all__ = ["Lost", "PoolError", "WarmPool", "cores", "python_worker"]

MAX_RESTARTS = 3  # of one worker in a row, without an answer between and without a request to blame


class Lost(Enum):
    """Why a request has no answer."""

    TIMEOUT = "took too long"  # its worker was killed and replaced
    DIED = "its worker died"  # not tried again: it may be what killed it
    DEADLINE = "not answered before the batch's deadline"


class PoolError(RuntimeError):
    """Workers cannot be started, or die again and again without a request to blame."""


class WarmPool:
    """Workers that answer byte strings with byte strings. Safe to share between threads, and after a fork.

    Args:
        command: Starts one worker; it speaks frames on stdin and stdout (`_serve`), and stderr is the owner's.
        size: Workers; None takes the cores that this process may use.
        env: Environment of the workers; None takes the owner's.
        start_seconds: How long a worker may take to say that it is ready.

    Attributes:
        hello: What the first worker said when it was ready; empty before.
    """

    def __init__(
        self,
        command: Sequence[str],
        size: int | None = None,
        *,
        env: Mapping[str, str] | None = None,
        start_seconds: float = 30.0,
    ) -> None:
        self.command = tuple(command)
        self.size = max(1, cores() if size is None else size)
        self.env = env
        self.start_seconds = start_seconds
        self.hello = b""
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _kill_all, self._workers)
        _POOLS.add(self)

    def start(self) -> None:
        """Start all workers and return at once: they warm up beside what comes next.

        Raises:
            PoolError: They cannot be started.
        """
        with self._lock:
            self._grow(self.size)

    def map(self, requests: Sequence[bytes], seconds: float, deadline: float | None = None) -> list[bytes | Lost]:
        """Answers, in the order of the requests.

        Args:
            requests: What the workers get.
            seconds: Wall-clock seconds that one request may take.
            deadline: Seconds from now after which what has no answer is given up; None waits for all.

        Raises:
            PoolError: A worker cannot be started, or needed more than three restarts in a row.
        """
        end = math.inf if deadline is None else time.monotonic() + deadline
        answers: list[bytes | Lost] = [Lost.DEADLINE] * len(requests)
        waiting = deque(range(len(requests)))
        with self._lock:
            try:
                self._step(0.0)  # what happened since the last batch: workers that became ready, or died
                while (waiting or self._busy()) and time.monotonic() < end:
                    self._grow(min(self.size, len(self._busy()) + len(waiting)))
                    for worker in self._workers:
                        if waiting and worker.is_idle:
                            job = waiting.popleft()
                            worker.begin(job, requests[job], seconds)
                    for job, outcome in self._step(end):
                        answers[job] = outcome
                for (
                    worker
                ) in self._busy():  # past the deadline: their answers would be taken for those of the next batch
                    self._replace(worker)
            except BaseException:  # an interrupt too
                _kill_all(self._workers)
                raise
        return answers

    def close(self) -> None:
        """Kill the workers. A later `map` would start new ones."""
        with self._lock:
            _kill_all(self._workers)

    def _grow(self, size: int) -> None:
        while len(self._workers) < size:
            self._workers.append(self._new(failures=0))

    def _new(self, failures: int) -> _Worker:
        try:
            return _Worker(self.command, self.env, self.start_seconds, failures)
        except OSError as e:
            raise PoolError(f"worker {self.command[0]!r} cannot be started ({e})") from e

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.job is not None]

    def _replace(self, worker: _Worker, without_cause: bool = False) -> None:
        failures = worker.failures + without_cause
        self._workers.remove(worker)
        status = worker.kill()
        if failures > MAX_RESTARTS:
            raise PoolError(
                f"worker {' '.join(self.command)!r} died {failures} times in a row (last exit status {status})"
            )
        self._workers.append(self._new(failures))

    def _step(self, end: float) -> list[tuple[int, bytes | Lost]]:
        """Wait until something happens, or `end`; (job, outcome) of every request that is over."""
        poll = select.poll()
        for worker in self._workers:
            worker.register(poll)
        limit = min([end, *(worker.until for worker in self._workers)])
        wait = None if limit == math.inf else 1000 * max(0.0, limit - time.monotonic()) + 1
        happened = {fd for fd, _ in poll.poll(wait)}
        outcomes: list[tuple[int, bytes | Lost]] = []
        for worker in list(self._workers):
            job = worker.job
            frame = worker.exchange(happened)
            if frame is not None and job is None:
                self.hello = self.hello or frame
            elif frame is not None and job is not None:
                outcomes.append((job, frame))
            elif worker.is_gone or time.monotonic() >= worker.until:
                if job is not None:
                    outcomes.append((job, Lost.DIED if worker.is_gone else Lost.TIMEOUT))
                self._replace(worker, without_cause=job is None)
        return outcomes

    def _forget(self) -> None:
        """After a fork: the workers are the parent's, and its pipes must not be held open here."""
        for worker in self._workers:
            worker.let_go()
        self._workers.clear()
        self._lock = threading.Lock()  # another thread of the parent may have held it


class _Worker:
    """One worker process and what it is doing.

    Attributes:
        job: Number of the request in hand; None while it starts or idles.
        until: When what it does is over its time (seconds of `time.monotonic`); inf when idle.
        failures: Deaths in a row without a request to blame, its predecessors' included.
        is_gone: Whether it ended, or broke the protocol.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] | None, start_seconds: float, failures: int
    ) -> None:
        life, self._life = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=env,
                start_new_session=True,
                pass_fds=(life,),
            )
            _kill_on_hangup(life, self._process.pid)
        except OSError:
            os.close(self._life)
            raise
        finally:
            os.close(life)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)
        os.set_blocking(self._out.fileno(), False)
        self._to_send = memoryview(b"")
        self._received = bytearray()
        self._is_ready = False
        self.job: int | None = None
        self.until = time.monotonic() + start_seconds
        self.failures = failures
        self.is_gone = False

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        return self._is_ready and self.job is None and not self.is_gone

    def begin(self, job: int, request: bytes, seconds: float) -> None:
        """Give it a request."""
        self.job = job
        self.until = time.monotonic() + seconds
        self._to_send = memoryview(len(request).to_bytes(HEADER, "little") + request)
        self._send()

    def register(self, poll: select.poll) -> None:
        """Say what it waits for."""
        poll.register(self._out, select.POLLIN)
        if self._to_send:
            poll.register(self._in, select.POLLOUT)

    def exchange(self, happened: set[int]) -> bytes | None:
        """Write and read what the pipes take and give; a frame when one is complete."""
        if self._in.fileno() in happened:
            self._send()
        if self._out.fileno() not in happened:
            return None
        chunk = self._out.read(1 << 16)
        self._received += chunk or b""
        self.is_gone = chunk == b""
        size = HEADER + int.from_bytes(self._received[:HEADER], "little")
        if len(self._received) < HEADER or len(self._received) < size:
            return None
        if len(self._received) > size or self.is_idle:
            self.is_gone = True  # it talks out of turn: what it says belongs to no request
            return None
        frame = bytes(self._received[HEADER:])
        self._received.clear()
        self.failures = 0 if self._is_ready else self.failures
        self._is_ready, self.job, self.until, self.is_gone = True, None, math.inf, False
        return frame

    def kill(self) -> int:
        """End it and all it started; its exit status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._close()
        return status

    def let_go(self) -> None:
        """Close the pipes of a worker that is not this process's child."""
        self._close()
        self._process.returncode = 0  # nothing to wait for here

    def _close(self) -> None:
        self._in.close()
        self._out.close()
        os.close(self._life)

    def _send(self) -> None:
        try:
            while self._to_send and (sent := self._in.write(self._to_send)):
                self._to_send = self._to_send[sent:]
        except BrokenPipeError:
            self._to_send = memoryview(b"")  # it died; the end of its output says so too


def python_worker(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run a module as a worker, with this process's import path."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return [sys.executable, "-P", "-m", module, *arguments], {**os.environ, "PYTHONPATH": path}


def cores() -> int:
    """Cores that this process may use: its share of them where torchrun started several on one machine."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _kill_on_hangup(life: int, group: int) -> None:
    """Have the kernel kill a process group, stuck or not, when the other end of this pipe is closed.

    Nothing is ever written to the pipe, so its only event is the hang-up, and F_SETSIG makes that event SIGKILL. The
    worker holds this end open; elsewhere than on Linux it ends at the end of its input only.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(life, fcntl.F_SETOWN, -group)
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool._forget()


_POOLS: weakref.WeakSet[WarmPool] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
