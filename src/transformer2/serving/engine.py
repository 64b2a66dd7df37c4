"""One thread runs the model; requests wait for it in the event loop.

The thread draws one token for every request, wakes those who wait in the event loop, and repeats. It alone calls
`step`; requests are started in worker threads, where tokenising a long prompt holds up no one.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from transformer2.adaptive.model import SelfAdaptive
from transformer2.adaptive.request import Job
from transformer2.errors import DataError, UnknownExpertError
from transformer2.serving.faults import Fault, as_fault
from transformer2.serving.guard import Limits

__all__ = ["Call", "Engine"]

DECODERS = 2  # threads that decode pictures, seconds and hundreds of MB for a large one; other requests do not wait


class Call:
    """A request under way: a job for each of its answers.

    Attributes:
        jobs: In the order of the answers.
        streams: Whether every token is waited for, or only the ends.
        error: What went wrong in the thread that runs the model.
    """

    def __init__(self, count: int, streams: bool, seconds: float) -> None:
        self.jobs: list[Job] = []
        self.count, self.streams, self.seconds = count, streams, seconds
        self.error: Fault | None = None
        self.started = time.monotonic()
        self._moved = asyncio.Event()
        self._left = False

    def start(self, starts: Sequence[Callable[[], Job]]) -> None:
        """Start the jobs; in a worker thread. One that was left meanwhile runs none."""
        for start in starts:
            job = start()
            self.jobs.append(job)
            if self._left:
                job.cancel()

    def leave(self) -> None:
        """Nobody waits any more: free the rows."""
        self._left = True
        for job in self.jobs:
            job.cancel()

    def wake(self, error: Fault | None = None) -> None:
        """Something moved."""
        self.error = self.error or error
        self._moved.set()

    async def moved(self, seconds: float) -> None:
        """Wait until something moves, for so long at most.

        Raises:
            Fault: It has taken too long.
        """
        left = self.started + self.seconds - time.monotonic()
        try:
            async with asyncio.timeout(min(seconds, max(0.0, left))):
                await self._moved.wait()
        except TimeoutError:
            if left <= seconds:
                # The openai client would ask again, and have a busy server do the same once more.
                headers = {"x-should-retry": "false"}
                raise Fault(504, f"no whole answer within {self.seconds:g} s", "timeout", headers=headers) from None
            return
        self._moved.clear()

    def check(self) -> bool:
        """Whether every job has its answer.

        Raises:
            Fault: What went wrong with one of them, or with the thread that runs the model.
        """
        if self.error is not None:
            raise self.error
        for job in self.jobs:
            if job.error is not None:
                # Whatever else it is, the request was fine when it was started: it is no fault of the client's.
                own = isinstance(job.error, UnknownExpertError | DataError)  # an expert that went; a picture
                raise as_fault(job.error if own else RuntimeError(job.error))
        return all(job.answer is not None for job in self.jobs)


class Engine:
    """The thread that runs the model, and who waits for it.

    Args:
        model: The model.
        limits: How many may wait.

    Attributes:
        answers: Answers under way or waiting.
        draining: Whether new requests are refused because the server ends.
        steps: Steps of the running batch so far; each draws one token for every row.
    """

    def __init__(self, model: SelfAdaptive, limits: Limits) -> None:
        self.model, self.limits, self.draining, self.steps = model, limits, False, 0
        self._calls: set[Call] = set()
        self.answers = 0
        self._seconds = 1.0  # that an answer takes, a moving average
        self._decoders = ThreadPoolExecutor(DECODERS, "pictures")
        self._work, self._closed = threading.Event(), False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The thread runs inside; waited for in the event loop that enters."""
        thread = threading.Thread(target=self._run, args=[asyncio.get_running_loop()], name="engine", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed = True
            self._work.set()
            self._decoders.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(thread.join)

    def drain(self) -> None:
        """Refuse new requests from now on; from any thread or signal handler."""
        self.draining = True

    @asynccontextmanager
    async def call(
        self, starts: Sequence[Callable[[], Job]], streams: bool, pictures: bool = False
    ) -> AsyncIterator[Call]:
        """Start jobs, which may finish inside; what is left of them then is cancelled.

        Args:
            starts: Start one each.
            streams: Whether every token is waited for.
            pictures: Whether there are pictures to decode.

        Raises:
            Fault: The server ends (503), too many wait (429), or more are asked for than can ever run or wait (400).
            UserError: A job cannot be started.
        """
        if self.draining:
            raise Fault(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "5"})
        room = self.model.max_rows + self.limits.queue
        if len(starts) > room:  # which no waiting changes
            message = f"{len(starts)} answers are more than the {room} this server takes; ask for fewer"
            raise Fault(400, message, "invalid_value", "n")
        if self.answers + len(starts) > room:
            wait = min(60, max(1, math.ceil(self._seconds * self.answers / self.model.max_rows)))
            message = f"{self.answers} answers are under way or wait; try again in {wait} s"
            raise Fault(429, message, "rate_limit_exceeded", headers={"Retry-After": str(wait)})
        call = Call(len(starts), streams, self.limits.seconds)
        self.answers += call.count
        try:
            executor = self._decoders if pictures else None
            await asyncio.get_running_loop().run_in_executor(executor, call.start, starts)
            self._calls.add(call)
            self._work.set()
            yield call
        finally:
            call.leave()
            self._calls.discard(call)
            self._work.set()  # so that what was cancelled goes
            self._seconds += 0.1 * (time.monotonic() - call.started - self._seconds)
            self.answers -= call.count

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._closed:
            self._work.wait()
            self._work.clear()
            while not (self._closed or self.model.is_idle):
                try:
                    self.model.step()
                except Exception as e:
                    loop.call_soon_threadsafe(self._wake, as_fault(e))
                    time.sleep(0.1)  # whatever it is, it may be so at the next step too
                    continue
                self.steps += 1
                loop.call_soon_threadsafe(self._wake)

    def _wake(self, fault: Fault | None = None) -> None:
        for call in self._calls:
            if fault or call.streams or all(job.is_done for job in call.jobs):
                call.wake(fault)
