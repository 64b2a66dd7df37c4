"""Warm worker processes that can be killed: requests in, answers in order out, and no request holds its caller up.

    pool = WorkerPool([sys.executable, "-m", "my_worker"])     # the worker calls `serve(handle)`
    answers = pool.map([b"...", b"..."], seconds=2.0)

Verifiers run what cannot be trusted to end. A thread cannot be stopped, and a signal is not seen by C code that holds
the GIL; so what runs over its time is killed as a process group. While a batch runs, one thread per worker waits in
recv with a time limit and the GIL free. `docs/adr/0012` says why this is not a library's pool.

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
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

__all__ = ["Lost", "PoolError", "WorkerPool", "cores", "serve"]

MAX_RESTARTS = 3  # of one worker in a row, without an answer between and without a request to blame
HEADER = 4  # bytes before each message, little-endian: how many follow
TICK = 50  # milliseconds between looks at whether there is still something to do for a worker that starts


class Lost(Enum):
    """Why a request has no answer."""

    TIMEOUT = "took too long"  # its worker was killed and replaced
    DIED = "its worker died"  # not tried again: it may be what killed it
    DEADLINE = "not answered before the batch's deadline"


class PoolError(RuntimeError):
    """Workers cannot be started, or die again and again without a request to blame."""


class WorkerPool:
    """Workers that answer byte strings with byte strings. Safe to share between threads, and after a fork.

    Args:
        command: Starts one worker, which calls `serve`; its last argument, added here, is the descriptor of its socket.
            It reads nothing on stdin, and its stdout and stderr are the owner's stderr.
        size: Workers; None takes the cores that this process may use.
        env: Environment of the workers; None takes the owner's.
        start_seconds: How long a worker may take to say that it is ready.
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
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _kill_all, self._workers)
        _POOLS.add(self)

    def start(self) -> None:
        """Start all workers and return at once: they warm up while the caller continues.

        Raises:
            PoolError: They cannot be started.
        """
        with self._lock:
            while len(self._workers) < self.size:
                self._workers.append(_Worker(self))

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
        waiting = deque(enumerate(requests))

        def answer(worker: _Worker) -> None:
            while waiting and time.monotonic() < end:
                if worker.is_ready():
                    with contextlib.suppress(IndexError):  # another worker took the last request
                        job, request = waiting.popleft()
                        answers[job] = worker.ask(request, seconds, end)

        with self._lock:
            threads = ThreadPoolExecutor(self.size)
            try:
                while len(self._workers) < min(self.size, len(requests)):
                    self._workers.append(_Worker(self))
                # Those that are ready first: one that is being replaced would hold up a short batch.
                self._workers.sort(key=lambda worker: worker.is_starting)
                for future in [threads.submit(answer, worker) for worker in self._workers[: len(requests)]]:
                    future.result()
            except BaseException:  # an interrupt too: nobody waits for these answers any more
                waiting.clear()
                for worker in self._workers:
                    worker.disconnect()
                threads.shutdown()
                _kill_all(self._workers)
                raise
            finally:
                threads.shutdown()
        return answers

    def close(self) -> None:
        """Kill the workers. A later `map` would start new ones."""
        with self._lock:
            _kill_all(self._workers)

    def _forget(self) -> None:
        """After a fork: the workers are the parent's, and its ends of their pipes must not be held open here."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._lock = threading.Lock()  # another thread of the parent may have held it


class _Worker:
    """A worker process, replaced by another one when it dies or is killed; used by one thread at a time."""

    def __init__(self, pool: WorkerPool) -> None:
        self._command, self._env, self._start_seconds = pool.command, pool.env, pool.start_seconds
        self._failures = 0  # deaths in a row without a request to blame
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        life, ours = os.pipe()
        self._life = os.fdopen(ours, "wb")
        try:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=self._env,
                start_new_session=True,
                pass_fds=(theirs.fileno(), life),
            )
            _kill_on_hangup(life, self._process.pid)
        except OSError as e:
            self.close()
            raise PoolError(f"worker {self._command[0]!r} cannot be started ({e})") from e
        finally:
            theirs.close()
            os.close(life)
        self.is_starting = True
        self._until = time.monotonic() + self._start_seconds

    def is_ready(self) -> bool:
        """Whether it takes a request; waits a moment for one that starts, and replaces one that ended meanwhile."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        speaks = bool(poll.poll(TICK if self.is_starting else 0))
        if self.is_starting and speaks:
            with contextlib.suppress(OSError, EOFError):
                _receive(self._socket, self._until)  # its first message says: ready
                self.is_starting = speaks = False
        if not speaks and (not self.is_starting or time.monotonic() < self._until):
            return not self.is_starting
        self._failures += 1  # it is gone, talks out of turn, or takes too long to start
        status = self.kill()
        if self._failures > MAX_RESTARTS:
            command = " ".join(self._command)
            raise PoolError(f"worker {command!r} died {self._failures} times in a row (last exit status {status})")
        self._start()
        return False

    def ask(self, request: bytes, seconds: float, end: float) -> bytes | Lost:
        """Its answer; without one, it is replaced."""
        until = time.monotonic() + seconds
        try:
            self._socket.settimeout(max(0.001, min(until, end) - time.monotonic()))
            _send(self._socket, request)
            answer = _receive(self._socket, min(until, end))
            self._failures = 0
            return answer
        except TimeoutError:
            lost = Lost.TIMEOUT if until <= end else Lost.DEADLINE
        except (OSError, EOFError):
            lost = Lost.DIED
        self.kill()
        self._start()
        return lost

    def disconnect(self) -> None:
        """End the wait of the thread that uses it; the worker ends, or is replaced at its next use."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def kill(self) -> int:
        """End it and all it started, and say its exit status."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone already
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self.close()
        return status

    def close(self) -> None:
        self._socket.close()
        self._life.close()


def serve(handle: Callable[[bytes], bytes]) -> None:
    """The worker's side: answer requests until the owner is gone. An exception ends the worker; another is started."""
    owner = socket.socket(fileno=int(sys.argv[-1]))
    owner.set_inheritable(False)
    with contextlib.suppress(EOFError):
        answer = b""  # the first one says: ready
        while True:
            _send(owner, answer)
            answer = handle(_receive(owner))


def cores() -> int:
    """Cores that this process may use: its share of them where torchrun started several on one machine."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _send(channel: socket.socket, message: bytes) -> None:
    channel.sendall(len(message).to_bytes(HEADER, "little") + message)


def _receive(channel: socket.socket, until: float = math.inf) -> bytes:
    """The next message; TimeoutError when it is not there in time, EOFError when the other side is gone."""

    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            channel.settimeout(None if until == math.inf else max(0.001, until - time.monotonic()))
            data += (part := channel.recv(size - len(data)))
            if not part:
                raise EOFError
        return bytes(data)

    return exactly(int.from_bytes(exactly(HEADER), "little"))


def _kill_on_hangup(life: int, group: int) -> None:
    """Have the kernel kill a process group, stuck or not, when the other end of this pipe is closed.

    Nothing is ever written to the pipe, so its only event is the hang-up, and F_SETSIG makes that event SIGKILL. The
    worker holds this end open; elsewhere than on Linux it ends when it next reads from its owner.
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


_POOLS: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
