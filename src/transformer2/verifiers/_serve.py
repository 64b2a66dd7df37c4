"""The worker's side of `pool.WarmPool`: frames in, frames out, and nothing else on the pipe.

A frame is four bytes, little-endian, that say how many bytes follow. The first one a worker sends says: ready.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

__all__ = ["HEADER", "Channel", "serve"]

HEADER = 4  # bytes


class Channel:
    """The pipes to the owner, taken off descriptors 0 and 1: what is printed goes to stderr, what is read is empty.

    Make one before anything is imported that may print.
    """

    def __init__(self) -> None:
        self._requests: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._answers = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)

    def receive(self) -> bytes | None:
        """The next request; None when the owner is gone."""
        header = self._requests.read(HEADER)
        size = int.from_bytes(header, "little")
        payload = self._requests.read(size)
        return payload if len(header) == HEADER and len(payload) == size else None

    def send(self, payload: bytes) -> None:
        """One answer."""
        frame = memoryview(len(payload).to_bytes(HEADER, "little") + payload)
        while frame:
            frame = frame[os.write(self._answers, frame) :]


def serve(handle: Callable[[bytes], bytes], hello: bytes = b"", channel: Channel | None = None) -> None:
    """Answer requests until the owner closes its end.

    Args:
        handle: Request -> answer. An exception ends the worker; the owner starts another.
        hello: What the owner finds in `WarmPool.hello`.
        channel: The pipes, when they were taken before imports; None takes them now.
    """
    channel = channel or Channel()
    channel.send(hello)
    while (request := channel.receive()) is not None:
        channel.send(handle(request))
