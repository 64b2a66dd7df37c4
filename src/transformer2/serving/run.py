"""A server from its socket to its end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from transformer2.errors import UserError, shown
from transformer2.serving.engine import Engine

__all__ = ["address", "bind", "is_loopback", "run"]

FLUSH = 5  # seconds that clients have at the end to read what is sent, or to notice that it is over


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one.

    Raises:
        UserError: The address cannot be had.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except (OSError, UnicodeError) as e:  # UnicodeError: a name with an empty part, or one that is too long
        why = getattr(e, "strerror", e)
        raise UserError(f"cannot listen at {shown(host)}:{port} ({why}); give another --host, or --port 0") from e
    return bound


def address(bound: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether this machine alone can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def run(app: FastAPI, bound: socket.socket, ready: Callable[[Callable[[], None]], None]) -> None:
    """Serve until told to stop: what is new is refused then, what runs is finished.

    Args:
        app: From `create_app`.
        bound: From `bind`.
        ready: Called once requests are taken, with what stops the server, from any thread or signal handler.
    """
    # No access log: it would grow, and /metrics counts.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=FLUSH
    )
    asyncio.run(_Server(config, app.state.engine, ready).serve([bound]))


class _Server(uvicorn.Server):
    """Ends once the engine drains and no answer is under way. The command line handles signals."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(config)
        self.engine, self.ready = engine, ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready(self.engine.drain)

    async def on_tick(self, counter: int) -> bool:
        # Then the socket is closed, and responses that are being sent are sent.
        return await super().on_tick(counter) or (self.engine.draining and not self.engine.answers)
