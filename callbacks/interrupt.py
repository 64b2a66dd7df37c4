"""Ctrl-C, SIGTERM and SIGHUP: what there is to save is saved at once, and the process is gone within seconds.

The kernel's signal reaches Python twice. A thread reads it from `set_wakeup_fd` whatever the main thread is doing (a
backward pass is one call of minutes, and no Python handler runs before it returns): it calls `on_signal`, which
saves and says how to resume. The main thread raises `Interrupted` as soon as it can, cleans up and ends the command.
Where it has not done so in time, or a second signal comes, the thread ends the process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 6.0  # seconds that the main thread has to end by itself once all is saved

OnSignal = Callable[[int], str | None]


class Interrupted(BaseException):
    """A signal asked for the end. No KeyboardInterrupt, which Lightning turns into exit code 1 without a message."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


class Listener:
    """Signals while a command runs; does nothing in a thread, where Python takes none.

    Attributes:
        number: The first signal that came; 0 before.
        on_signal: Called with it, in a thread: saves, and returns how to resume (None where another rank says it).
        grace: Seconds that saving and the main thread have; then the process is ended.
        stop: Of a server: the first signal calls it, in the main thread, and interrupts nothing, for what runs is
            finished; the next one interrupts.
    """

    def __init__(self) -> None:
        self.number = 0
        self.on_signal: OnSignal = lambda number: "run the command again"
        self.grace = GRACE
        self.stop: Callable[[], None] | None = None
        self._stopping = False
        self._hint: str | None = "what there was to save could not be saved in time"
        self._raised = False
        self._not_handled: set[int] = set()
        self._saved = threading.Event()
        self._reported = threading.Lock()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def install_handlers(self) -> None:
        """Handle the signals; also once Lightning has put a handler that waits for all ranks in our place."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                    signal.signal(number, self._raise)

    def stop_handling(self, number: int) -> None:
        """Leave a signal to the command, which handles it by itself from now on."""
        self._not_handled.add(number)

    def deliver(self, number: int) -> None:
        """Act on another rank's signal, unless one has come here too."""
        if not self.number:
            os.kill(os.getpid(), number)

    def end(self) -> int:
        """Say how to resume, once; the exit code."""
        self._saved.wait(self.grace)
        if self._reported.acquire(blocking=False) and self._hint is not None:
            print(f"transformer2: interrupted; {self._hint}", file=sys.stderr, flush=True)
        return 128 + self.number

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None and not self._stopping:
            self._stopping = True
            self.stop()
        elif not self._raised:
            self._raised, self.number = True, number
            raise Interrupted(number)

    def _watch(self) -> None:
        number = self._next()
        if number is not None and self.stop is not None:
            number = self._next()
        if number is None:
            return
        self.number = number
        threading.Thread(target=self._save, daemon=True, name="save on signal").start()
        self._reader.settimeout(self.grace)
        try:
            if self._next() is None:
                return
        except TimeoutError:
            pass
        os._exit(self.end())

    def _next(self) -> int | None:
        """The next of our signals; None once the command is over."""
        while received := self._reader.recv(1):
            if received[0] in SIGNALS and received[0] not in self._not_handled:
                return received[0]
        return None

    def _save(self) -> None:
        try:
            self._hint = self.on_signal(self.number)
        except Exception as e:
            self._hint = f"nothing could be saved: {e}"
        self._saved.set()


@contextmanager
def listening() -> Iterator[Listener]:
    """Listen to signals while a command runs."""
    global _current
    listener, before = Listener(), _current
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    wakeup = -1
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        wakeup = signal.set_wakeup_fd(listener._writer.fileno(), warn_on_full_buffer=False)
        listener.install_handlers()
        threading.Thread(target=listener._watch, daemon=True, name="signals").start()
    _current = listener
    try:
        yield listener
    finally:
        _current = before
        if in_main:
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        listener._writer.close()


def current() -> Listener | None:
    """The listener of the command that runs; None where our code is used without the command line."""
    return _current


def ignore_signals() -> None:
    """From here on no signal of ours changes how this process ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _after_fork() -> None:
    """A child that never execs is not a command: a signal to it is not one to its parent, whose socket it holds."""
    if _current is not None and signal.set_wakeup_fd(-1) == _current._writer.fileno():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


_current: Listener | None = None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
